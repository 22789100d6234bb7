"""Records: their form, who wins, and what is left to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import TidemillError
from pipeline.ledger import records
from pipeline.ledger.pieces import Span, Todo
from pipeline.ledger.records import (
    Record,
    find_work,
    from_json,
    from_table,
    read_record,
    read_records,
    to_json,
    to_table,
    write_record,
)
from pipeline.ledger.store import FileStore, Unknown

MakeSpan = Callable[..., Span]
MakeRecord = Callable[..., Record]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path))


@pytest.fixture
def some(make_span: MakeSpan, make_record: MakeRecord) -> list[Record]:
    chain = make_span("b.jsonl.gz", stop=None, rows=None)
    empty = make_record(chain, 1, file=None, quarantine_file=None, rows_in=0, rows_out=0, quarantined={}, statistics={})
    return [make_record(make_span()), make_record(chain, last=False), empty]


def test_json_round_trip(some: list[Record]) -> None:
    assert [from_json(to_json(r), "k") for r in some] == some


def test_manifest_round_trip(some: list[Record]) -> None:
    table = to_table(some)
    assert table.schema.field("quarantined").type == pa.map_(pa.string(), pa.int64())
    assert from_table(table, "k") == some
    assert from_table(to_table([]), "k") == []


def test_fields_of_a_later_version_are_passed_over(some: list[Record]) -> None:
    later = json.dumps({**json.loads(to_json(some[0])), "colour": "blue"}).encode()
    assert from_json(later, "k") == some[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (b"not json", "Invalid JSON"),
        ({"rows_in": None}, "rows_in"),
        ({"file": "data/../../etc/passwd"}, "lies outside"),
        ({"quarantine_file": "/etc/passwd"}, "lies outside"),
        ({"file": "s3://elsewhere/x"}, "lies outside"),
    ],
)
def test_a_damaged_record_is_named(some: list[Record], change: bytes | dict[str, object], what: str) -> None:
    data = change if isinstance(change, bytes) else json.dumps({**json.loads(to_json(some[0])), **change}).encode()
    with pytest.raises(TidemillError, match=rf"_records/g1/x\.json is not a record: .*{what}"):
        from_json(data, "_records/g1/x.json")


def test_a_damaged_manifest_is_named() -> None:
    with pytest.raises(TidemillError, match=r"_manifests/x\.parquet is not a manifest: "):
        from_table(pa.table({"piece": ["a"]}), "_manifests/x.parquet")


def test_the_first_writer_wins(store: FileStore, some: list[Record]) -> None:
    first = replace(some[0], file="data/g1/first.parquet")
    assert write_record(store, first) == first
    assert write_record(store, some[0]) == first
    assert read_record(store, "g1", first.piece) == first
    assert read_record(store, "g1", "0" * 32) is None


class Faulty(FileStore):
    """Every `create` ends without an answer; with `works`, what it was to write is there all the same."""

    works = True

    def create(self, key: str, data: bytes) -> None:
        if self.works:
            super().create(key, data)
        raise Unknown("timeout")


def test_after_an_unknown_outcome_the_record_is_looked_up(tmp_path: Path, some: list[Record]) -> None:
    assert write_record(Faulty(str(tmp_path)), some[0], pause=lambda _: pytest.fail("nothing to wait for")) == some[0]


def test_a_store_that_never_answers_is_given_up(tmp_path: Path, some: list[Record]) -> None:
    store = Faulty(str(tmp_path))
    object.__setattr__(store, "works", False)
    pauses: list[float] = []
    with pytest.raises(Unknown):
        write_record(store, some[0], pause=pauses.append)
    assert pauses == sorted(pauses)
    assert len(pauses) == records.ATTEMPTS - 1
    assert store.list("_records") == []


def test_reading_skips_what_is_known_and_other_generations(store: FileStore, some: list[Record]) -> None:
    for record in [*some, replace(some[0], generation="g10")]:
        write_record(store, record)
    assert read_records(store, "g1") == {r.piece: r for r in some}
    assert read_records(store, "g1", skip={some[0].piece}) == {r.piece: r for r in some[1:]}
    assert read_records(store, "g2") == {}


chains = st.lists(st.integers(0, 4), min_size=1, max_size=5)
"""How many pieces each span has, less one."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lasts=chains, data=st.data())
def test_work_left(make_span: MakeSpan, make_record: MakeRecord, lasts: list[int], data: st.DataObject) -> None:
    """For any set of records: a span is left out exactly when all its pieces are there, and `done` is what is there."""
    spans = [make_span(start=100 * n, stop=100 * (n + 1), rows=None) for n in range(len(lasts))]
    known: dict[str, Record] = {}
    expected = []
    for span, last in zip(spans, lasts, strict=True):
        done = data.draw(st.sets(st.integers(0, last)))
        for index in done:
            known[span.piece_id(index)] = make_record(span, index, last=index == last)
        if done != set(range(last + 1)):
            expected.append(Todo(span, frozenset(done)))
    shuffled = dict(data.draw(st.permutations(list(known.items()))))
    assert find_work(spans, shuffled) == expected


def test_records_of_another_version_or_cut_do_not_count(make_span: MakeSpan, make_record: MakeRecord) -> None:
    span = make_span()
    others = [make_span(version="v2"), make_span(piece_bytes=200), make_span(stop=9), make_span("b.parquet")]
    known = {r.piece: r for r in (make_record(s) for s in others)}
    assert find_work([span], known) == [Todo(span)]
    assert find_work([span], {"x": make_record(span)}) == []
