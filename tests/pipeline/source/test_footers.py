"""Footers that lie: each of them once hung planning or ended its process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ledger.pieces import Shard
from pipeline.source import parquet
from pipeline.source.storage import Corrupt


def _damaged(path: Path, found: bytes, replaced: bytes) -> Path:
    """A shard of 100 rows whose footer has these bytes replaced, wherever they stand."""
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(100)]}), path)
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert found in content[start:]
    footer = content[start:-8].replace(found, replaced)
    path.write_bytes(content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


_HUNDRED_ROWS = b"\x16\xc8\x01"
"""Thrift's compact form of an i64 field: 100, in the file's metadata, in the row group's and in the column's."""


def test_a_footer_with_rows_beyond_counting(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    huge = b"\x16" + b"\xfe" + b"\xff" * 7 + b"\x3f"  # 2^62 - 1 or so
    shard = shard_of(_damaged(tmp_path / "a.parquet", _HUNDRED_ROWS, huge))
    with pytest.raises(Corrupt, match="the footer promises"):
        parquet.read_footer(shard, "text", {})


def test_a_footer_whose_row_groups_do_not_add_up(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = tmp_path / "a.parquet"
    _damaged(path, _HUNDRED_ROWS, _HUNDRED_ROWS)
    content = path.read_bytes()
    at = content.rindex(_HUNDRED_ROWS)  # the row group's stands behind the file's
    path.write_bytes(content[:at] + b"\x16\xca\x01" + content[at + 3 :])
    with pytest.raises(Corrupt, match="promises 100 rows, but its row groups 101"):
        parquet.read_footer(shard_of(path), "text", {})


def test_a_column_chunk_that_contradicts_the_schema(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    optional, required = b"\x25\x02\x18\x04text", b"\x25\x00\x18\x04text"
    shard = shard_of(_damaged(tmp_path / "a.parquet", optional, required))
    with pytest.raises(Corrupt, match="histogram"):
        parquet.read_footer(shard, "text", {})


def test_a_column_name_that_is_not_utf8(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    shard = shard_of(_damaged(tmp_path / "a.parquet", b"text", b"te\xff\xfe"))
    with pytest.raises(Corrupt):
        parquet.read_footer(shard, "text", {})
