"""Limits: what is configured is taken as it is; what is left to us never calls a slow piece a loop."""

from __future__ import annotations

from pathlib import Path

import psutil
from hypothesis import given
from hypothesis import strategies as st

from pipeline.limits import Limits, Pace, machine_memory

SIZES = st.integers(0, 1 << 31)


@given(SIZES, st.floats(0.001, 1e6))
def test_a_limit_that_is_configured_holds_for_every_size(size: int, seconds: float) -> None:
    pace = Pace(Limits(seconds))
    pace.add(1, 1e9)
    assert pace.limit(size) == pace.probe(size) == seconds == Limits(seconds).reading(size)


@given(st.lists(st.tuples(st.integers(1, 1 << 31), st.floats(0, 1e5)), min_size=1), st.integers(1, 1 << 31))
def test_a_piece_may_take_ten_minutes_and_twenty_times_as_long_as_the_slowest(
    measured: list[tuple[int, float]], size: int
) -> None:
    pace = Pace(Limits())
    assert pace.limit(size) >= 1800  # before anything is measured
    for done, seconds in measured:
        pace.add(done, seconds)
    assert pace.limit(size) >= 600
    assert all(pace.limit(done) >= 19.9 * seconds for done, seconds in measured)
    assert 60 <= pace.probe(size) <= pace.limit(size)


def test_an_honest_slow_encoder_has_time_for_its_first_piece() -> None:
    bytes_per_second = 4 * 12  # DeBERTa-large on one weak core: some 12 tokens
    for size in (1 << 10, 1 << 20, 32 << 20):
        assert Pace(Limits()).limit(size) > size / bytes_per_second


def test_memory_is_that_of_the_machine_or_of_the_container() -> None:
    total = psutil.virtual_memory().total
    assert machine_memory(lambda _: "max\n") == total
    assert machine_memory(lambda _: f"{total * 2}\n") == total
    assert machine_memory(lambda path: "1000\n" if path.name == "memory.max" else "max") == 1000

    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    assert machine_memory(missing) == total
    assert Limits().worker_memory() <= total
    assert Limits(worker_bytes=7).worker_memory() == Limits(worker_bytes=7).beside_memory() == 7
