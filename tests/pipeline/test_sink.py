"""The pinned schema of the output, and the files and the record of one piece."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import quarantine
from pipeline.batch import Batch
from pipeline.ledger.pieces import Shard, Span
from pipeline.ledger.store import open_store
from pipeline.sink import fingerprint, output_schema, shard_column, write

VECTOR = pa.list_(pa.float16(), 2)
SCHEMA = output_schema(pa.schema([pa.field("lang", pa.string())]), {"v": VECTOR}, [])


def batch(rows: int) -> Batch:
    columns = [
        shard_column("a.parquet", rows),
        pa.array(range(rows), pa.int64()),
        pa.array(["en"] * rows, pa.string()),
        pa.array([f"a.parquet#{i}" for i in range(rows)], pa.string()),
        *(pa.array([1] * rows, pa.int32()) for _ in range(2)),
        pa.array([False] * rows, pa.bool_()),
        pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2 * rows, pa.float16()), 2),
    ]
    span = Span(Shard("a.parquet", "/a.parquet", "1", 1), 0, rows + 1, 1 << 20, rows=rows + 1)
    bad = quarantine.table("a.parquet", [quarantine.Entry(rows, None, "null_text", "null")])
    return Batch(span, 0, 0, rows + 1, True, rows + 1, pa.table(columns, schema=SCHEMA), bad)


def test_columns_stand_in_the_order_of_the_contract() -> None:
    schema = output_schema(pa.schema([pa.field("lang", pa.string())]), {"a": VECTOR, "b": VECTOR}, ["b"])
    counts = ["n_tokens", "n_segments", "truncated"]
    assert schema.names == ["_shard", "_row", "lang", "id", *counts, *(f"b_{c}" for c in counts), "a", "b"]


def test_a_fingerprint_tells_types_and_order_apart() -> None:
    assert fingerprint(SCHEMA) == fingerprint(SCHEMA.with_metadata({"note": "x"}))
    assert fingerprint(SCHEMA) != fingerprint(pa.schema(list(SCHEMA)[::-1]))


def test_files_keep_the_exact_schema_and_a_second_record_loses(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    record, ours = write(store, "g", batch(3))
    assert ours
    assert (record.rows_in, record.rows_out, record.quarantined) == (4, 3, {"null_text": 1})
    assert pq.read_schema(tmp_path / str(record.file)).equals(SCHEMA)
    assert pq.read_table(tmp_path / str(record.quarantine_file)).schema.equals(quarantine.SCHEMA)
    again, ours = write(store, "g", batch(3))
    assert not ours
    assert again == record


def test_a_piece_without_a_good_row_has_no_data_file(tmp_path: Path) -> None:
    record, _ = write(open_store(str(tmp_path)), "g", batch(0))
    assert record.file is None
    assert record.quarantine_file is not None
