"""Parquet shards: footers, row spans cut from them, and reading a span in small batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.pieces import MAX_ROWS, Shard, Span
from pipeline.source.columns import Raw, ReadRecipe
from pipeline.source.storage import Corrupt, decoding, open_shard

_BUFFER = 4 * 2**20
"""Bytes read at a time from each column chunk."""
_BATCH_ROWS = 1024
_BATCH_BYTES = 256 * 2**20
"""What the texts of one batch may come to in the worst case, as far as `_LEAST_ROWS` allows."""
_LEAST_ROWS = 16


@dataclass(frozen=True)
class Footer:
    """What planning needs of a shard's footer."""

    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]
    """For each row group its rows and the uncompressed bytes of its text column."""


def read_footer(shard: Shard, text: str, options: Mapping[str, Any]) -> Footer:
    """The shard's schema and row groups. Raises Corrupt where there is no readable footer."""
    with open_shard(shard, options, sequential=False) as file, decoding():
        parquet = _open(file)
        metadata = parquet.metadata
        column = next((j for j in range(metadata.num_columns) if metadata.schema.column(j).path == text), None)
        groups = []
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            groups.append((group.num_rows, 0 if column is None else group.column(column).total_uncompressed_size))
        return Footer(parquet.schema_arrow, tuple(groups))


def cut_spans(shard: Shard, groups: Iterable[tuple[int, int]], piece_bytes: int) -> list[Span]:
    """Row spans that tile the shard, each of about `piece_bytes` of text and at most MAX_ROWS rows.

    Neighbouring small row groups share a span; a large one is cut into slices of equal rows. A shard without rows has one
    span [0, 0)."""
    ranges: list[tuple[int, int]] = []  # rows, bytes
    rows = size = 0
    for group_rows, group_bytes in groups:
        slices = min(max(-(-group_bytes // piece_bytes), -(-group_rows // MAX_ROWS)), group_rows)
        if rows and (slices > 1 or rows + group_rows > MAX_ROWS or size + group_bytes > piece_bytes):
            ranges.append((rows, size))
            rows = size = 0
        if slices > 1:
            bounds = [group_rows * i // slices for i in range(slices + 1)]
            ranges += [(b - a, group_bytes * (b - a) // group_rows) for a, b in pairwise(bounds)]
        else:
            rows, size = rows + group_rows, size + group_bytes
    if rows or not ranges:
        ranges.append((rows, size))
    stops = np.cumsum([r for r, _ in ranges]).tolist()
    return [Span(shard, stop - r, stop, piece_bytes, rows=r, weight=b) for stop, (r, b) in zip(stops, ranges, strict=True)]


def read_batches(span: Span, recipe: ReadRecipe) -> Iterator[Raw]:
    """The span's rows in order, in batches of bounded memory. Raises Corrupt where they cannot be decoded."""
    with open_shard(span.shard, recipe.storage_options, sequential=False) as file, decoding():
        parquet = _open(file)
        columns = [name for name in recipe.columns if name in parquet.schema_arrow.names]
        row = span.start
        for batch in _batches(parquet, span, columns):
            yield Raw(np.arange(row, row + batch.num_rows), {name: batch.column(name) for name in columns})
            row += batch.num_rows
        if row != span.stop:
            raise Corrupt(f"rows {row} to {span.stop} are missing")


def _batches(parquet: pq.ParquetFile, span: Span, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The span's rows of `columns`; what stands before them in their row group is decoded and dropped."""
    assert span.stop is not None
    metadata = parquet.metadata
    starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
    groups = [i for i in range(metadata.num_row_groups) if starts[i] < span.stop and starts[i + 1] > span.start]
    left = span.stop - span.start
    if not groups:
        return
    if not columns:
        yield pa.RecordBatch.from_arrays([pa.nulls(left)], ["nothing"])
        return
    skip = span.start - int(starts[groups[0]])
    for batch in parquet.iter_batches(
        _batch_rows(metadata, groups, columns), row_groups=groups, columns=columns, use_threads=False
    ):
        part = batch.slice(skip, left)
        skip = max(0, skip - batch.num_rows)
        left -= part.num_rows
        if part.num_rows:
            yield part
        if not left:
            return


def _batch_rows(metadata: pq.FileMetaData, groups: list[int], columns: list[str]) -> int:
    """Rows of a batch, few where a single value may be huge: no value is larger than its column chunk.

    A few kilobytes can stand for gigabytes in a dictionary-encoded column, so the sum of the chunk says nothing of the rows'."""
    wanted = [j for j in range(metadata.num_columns) if metadata.schema.column(j).path.split(".")[0] in columns]
    largest = max((metadata.row_group(i).column(j).total_uncompressed_size for i in groups for j in wanted), default=0)
    return max(_LEAST_ROWS, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _open(file: BinaryIO) -> pq.ParquetFile:
    # A buffer makes column chunks stream instead of being read whole.
    return pq.ParquetFile(file, buffer_size=_BUFFER, page_checksum_verification=True)
