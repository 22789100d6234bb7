"""Delta: what others do to the table is put right, what they may not do is refused, and other readers see the rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import CommitFailedError

from pipeline.errors import ConfigError, TidemillError
from pipeline.formats import delta
from pipeline.ledger.publish import manifest_records
from tests.format_cases import OTHER_SCHEMA, SCHEMA, Ledger, ordered, rows


@pytest.fixture
def table(tmp_path: Path) -> Ledger:
    """Two shards, published and followed."""
    ledger = Ledger(str(tmp_path), {})
    ledger.put("a", rows("a", 7))
    ledger.put("b", rows("b", 5))
    ledger.follow("delta", ledger.publish())
    return ledger


def test_the_files_are_the_ledgers_own(table: Ledger, tmp_path: Path) -> None:
    opened = DeltaTable(table.url)
    assert {os.path.relpath(uri, table.url) for uri in opened.file_uris()} == set(table.store.list("data"))
    assert opened.count() == 12
    assert {path.name for path in tmp_path.iterdir()} == {"_commits", "_delta_log", "_manifests", "_records", "data"}


def test_a_night_is_one_transaction_of_what_changed(table: Ledger) -> None:
    table.put("b", rows("b", 2, seed=9))
    table.put("c", rows("c", 4))
    table.follow("delta", table.publish())
    log = Path(table.url, "_delta_log", "00000000000000000001.json").read_text().splitlines()
    actions = [next(iter(json.loads(line))) for line in log]
    assert sorted(actions) == ["add", "add", "commitInfo", "remove", "txn"]
    assert [entry.get("tidemill_version") for entry in DeltaTable(table.url).history()] == ["2", "1"]


def test_another_engine_reads_the_rows(table: Ledger) -> None:
    query = QueryBuilder().register("t", DeltaTable(table.url)).execute("select * from t").read_all()
    assert ordered(pa.table(query)) == table.expected()


def test_vacuum_takes_nothing(table: Ledger) -> None:
    table.put("a", rows("a", 2, seed=9))
    own = table.follow("delta", table.publish())
    opened = DeltaTable(table.url)
    assert opened.vacuum(dry_run=False, full=True) == []
    with pytest.raises(Exception, match="retention"):
        opened.vacuum(retention_hours=168, dry_run=False, full=True)
    assert table.read("delta", own) == table.expected()
    assert table.expected(1) == table.read("delta", 0)


@pytest.mark.parametrize("deed", ["delete", "compact"])
def test_what_others_wrote_is_put_right_by_the_next_version(table: Ledger, deed: str) -> None:
    opened = DeltaTable(table.url)
    opened.delete("_shard = 'a'") if deed == "delete" else opened.optimize.compact()
    table.put("c", rows("c", 4))
    own = table.follow("delta", table.publish())
    assert own == 2
    assert table.read("delta", own) == table.expected()


def test_a_write_by_others_in_between_is_seen(table: Ledger) -> None:
    table.put("c", rows("c", 4))
    commit = table.publish()
    change = delta.prepare(table.place, delta.standing(table.place), commit, manifest_records(table.store, commit))
    DeltaTable(table.url).delete("_shard = 'a'")
    with pytest.raises(CommitFailedError):
        delta.switch(table.place, change)
    assert table.read("delta", table.follow("delta", commit)) == table.expected()


def test_a_schema_changed_by_others_is_said(table: Ledger) -> None:
    DeltaTable(table.url).alter.add_columns([delta.Schema.from_arrow(pa.schema([("more", pa.int32())])).fields[0]])
    table.put("c", rows("c", 4))
    commit = table.publish()
    with pytest.raises(TidemillError, match="remove its _delta_log/"):
        table.follow("delta", commit)


def test_times_without_a_zone_may_come_with_a_later_generation(table: Ledger) -> None:
    assert DeltaTable(table.url).protocol().min_reader_version == 1
    table.shards = {"a": (1, rows("a", 3, OTHER_SCHEMA))}
    own = table.follow("delta", table.publish("b2", OTHER_SCHEMA))
    assert DeltaTable(table.url).protocol().reader_features == ["timestampNtz"]
    assert table.read("delta", own) == table.expected()


@pytest.mark.parametrize(
    ("column", "type_", "says"),
    [
        ("a b", pa.string(), "Delta allows none of"),
        ("_SHARD", pa.string(), "upper from lower case"),
        ("u", pa.uint16(), "keep it as a signed type"),
        ("t", pa.timestamp("ns"), r"keep it as timestamp\[us\]"),
        ("h", pa.list_(pa.struct([("v", pa.list_(pa.float16(), 2))])), r"column 'h.v': Delta has no halffloat"),
        ("n", pa.struct([("x,y", pa.int32())]), "column 'n.x,y'"),
        ("d", pa.duration("s"), "another type"),
    ],
)
def test_what_it_cannot_hold_is_said_in_words(column: str, type_: pa.DataType, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        delta.reads_as(pa.schema([*SCHEMA, pa.field(column, type_)]))


def test_conversions_are_those_that_are_documented() -> None:
    converted: dict[Any, Any] = {
        pa.list_(pa.float32(), 4): pa.list_(pa.field("element", pa.float32())),
        pa.list_(pa.int8(), 4): pa.list_(pa.field("element", pa.int8())),
        pa.dictionary(pa.int32(), pa.string()): pa.string(),
        pa.timestamp("s"): pa.timestamp("us"),
        pa.timestamp("ms", "Asia/Shanghai"): pa.timestamp("us", "UTC"),
        pa.int16(): pa.int16(),
    }
    for given, seen in converted.items():
        assert delta.reads_as(pa.schema([("c", given)])).field("c").type == seen
