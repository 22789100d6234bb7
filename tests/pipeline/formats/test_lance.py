"""Lance: only what is new is converted, types are exact, and what others do to the dataset is put right."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from pipeline.formats import lance as format_
from tests.format_cases import SCHEMA, Ledger, ordered, rows

HALF = pa.schema([*SCHEMA, pa.field("h", pa.list_(pa.float16(), 4))])


@pytest.fixture
def table(tmp_path: Path) -> Ledger:
    """Two shards, published and followed."""
    ledger = Ledger(str(tmp_path), {})
    ledger.put("a", rows("a", 7, HALF))
    ledger.put("b", rows("b", 5, HALF))
    ledger.follow("lance", ledger.publish(schema=HALF))
    return ledger


def newest(table: Ledger) -> lance.LanceDataset:
    """Opened by the address that the documents give."""
    return lance.dataset(f"{table.url}/_lance/table.lance")


def files(table: Ledger) -> list[str]:
    """The dataset's data files, in order."""
    return [file.path for fragment in newest(table).get_fragments() for file in fragment.data_files()]


def test_half_precision_is_exact(table: Ledger) -> None:
    read = newest(table).to_table()
    assert read.schema.remove_metadata().equals(HALF)
    assert ordered(read) == table.expected()


def test_only_what_is_new_is_converted(table: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    first, converted = files(table), []
    convert = format_._convert
    monkeypatch.setattr(format_, "_convert", lambda *a: (converted.append(a[1]), convert(*a))[1])
    table.put("b", rows("b", 2, HALF, seed=9))
    table.put("c", rows("c", 4, HALF))
    own = table.follow("lance", table.publish(schema=HALF))
    assert len(converted) == 2
    second = files(table)
    assert len(second) == 3
    assert second[0] == first[0]
    assert not {first[1]} & set(second)
    assert table.read("lance", own) == table.expected()
    versions = {
        v["version"]: lance.dataset(newest(table).uri, version=v["version"]).schema.metadata for v in newest(table).versions()
    }
    assert {own: int(m[b"tidemill.version"]) for own, m in versions.items() if m} == {1: 1, 2: 2}


def test_an_index_of_others_does_no_harm(table: Ledger) -> None:
    newest(table).create_scalar_index("lang", "BTREE")
    assert newest(table).version == 2
    kept = files(table)
    commit = table.publish(schema=HALF)
    assert table.follow("lance", commit) == 1  # still the ledger's version
    table.put("c", rows("c", 4, HALF))
    own = table.follow("lance", table.publish(schema=HALF))
    assert own == 3
    assert files(table)[:2] == kept
    assert table.read("lance", own) == table.expected()
    found = newest(table).to_table(filter="lang = 'w1'")
    assert ordered(found) == [row for row in table.expected() if row["lang"] == "w1"]
    assert newest(table).describe_indices() == []  # it has to be built again


@pytest.mark.parametrize("deed", ["delete", "compact", "compact and clean up"])
def test_what_others_wrote_is_put_right_by_the_next_version(table: Ledger, deed: str) -> None:
    dataset = newest(table)
    if deed == "delete":
        dataset.delete("_shard = 'a'")
    else:
        dataset.optimize.compact_files()
        assert len(newest(table).get_fragments()) == 1
    if deed == "compact and clean up":
        newest(table).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    table.put("c", rows("c", 4, HALF))
    own = table.follow("lance", table.publish(schema=HALF))
    assert table.read("lance", own) == table.expected()


def test_a_version_of_the_ledger_that_is_gone_costs_only_the_conversion(table: Ledger) -> None:
    table.put("c", rows("c", 4, HALF))
    commit = table.publish(schema=HALF)
    table.store.delete("_commits/00000001.json")
    assert table.read("lance", table.follow("lance", commit)) == table.expected()
