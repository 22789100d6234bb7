"""The order of a run's work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger.pieces import Shard, Span, Todo, in_order


def _todos(weights: list[int]) -> list[Todo]:
    return [Todo(Span(Shard(f"{i}", "", "v", 1), 0, 1, 1, weight=weight)) for i, weight in enumerate(weights)]


@given(st.lists(st.integers(0, 2**30), max_size=30), st.text("0123456789abcdef", max_size=4))
def test_the_biggest_come_first_and_none_is_lost(weights: list[int], run_id: str) -> None:
    todos = _todos(weights)
    ordered = in_order(todos, run_id)
    assert sorted(t.span.shard.key for t in ordered) == sorted(t.span.shard.key for t in todos)
    sizes = [t.span.weight.bit_length() for t in ordered]
    assert sizes == sorted(sizes, reverse=True)
    assert in_order(reversed(todos), run_id) == ordered


def test_two_runs_go_different_ways() -> None:
    todos = _todos([100] * 40)
    first, second = in_order(todos, "a"), in_order(todos, "b")
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 8


@given(st.integers(1, 60), st.text("0123456789abcdef", max_size=4))
def test_spans_of_a_shard_are_read_in_their_order_from_somewhere_on(count: int, run_id: str) -> None:
    shard = Shard("a", "", "v", 1)
    todos = [Todo(Span(shard, i, i + 1, 1, weight=100)) for i in range(count)]
    starts = [todo.span.start for todo in in_order(reversed(todos), run_id)]
    assert starts == [*range(starts[0], count), *range(starts[0])]


def test_two_runs_begin_a_large_shard_in_different_places() -> None:
    shard = Shard("a", "", "v", 1)
    todos = [Todo(Span(shard, i, i + 1, 1, weight=100)) for i in range(64)]
    assert len({in_order(todos, f"run {n}")[0].span.start for n in range(20)}) > 10
