"""Parquet shards: footers, row spans cut from them, and reading a span in small batches."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.pieces import MAX_ROWS, Shard, Span
from pipeline.source.columns import Raw, ReadRecipe
from pipeline.source.footers import check_chunks, check_counts
from pipeline.source.storage import Corrupt, decoding, open_shard

_BUFFER = 4 * 2**20
"""Bytes read at a time from each column chunk."""
_BATCH_ROWS = 1024
_BATCH_BYTES = 256 * 2**20
"""What the texts of one batch may come to in the worst case, as far as `_LEAST_ROWS` allows."""
_LEAST_ROWS = 16
_PARKED = 4
"""Readers kept open in one process, at most."""


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
        check_counts(metadata, shard.size)
        column = next((j for j in range(metadata.num_columns) if metadata.schema.column(j).path == text), None)
        if column is not None:
            check_chunks(metadata, shard.size, [text], range(metadata.num_row_groups))
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
            # Equal weights: an order by weight keeps the slices in theirs, and one reader serves them all (see _Cursor).
            ranges += [(b - a, group_bytes // slices) for a, b in pairwise(bounds)]
        else:
            rows, size = rows + group_rows, size + group_bytes
    if rows or not ranges:
        ranges.append((rows, size))
    stops = np.cumsum([r for r, _ in ranges]).tolist()
    return [Span(shard, stop - r, stop, piece_bytes, rows=r, weight=b) for stop, (r, b) in zip(stops, ranges, strict=True)]


def read_batches(span: Span, recipe: ReadRecipe) -> Iterator[Raw]:
    """The span's rows in order, in batches of bounded memory. Raises Corrupt where they cannot be decoded."""
    cursor = _take_cursor(span, recipe)
    try:
        with decoding():
            yield from cursor.rows(span)
    except BaseException:
        cursor.close()
        raise
    _park(cursor)


class _Cursor:
    """An open reader of the row groups that hold a span.

    Parquet cannot be entered in the middle of a row group: what stands before a slice has to be decoded and dropped. So a
    reader is parked where a slice ended, and the next slice of the same row group that this process reads goes on there."""

    def __init__(self, span: Span, recipe: ReadRecipe) -> None:
        self.key = _key(span, recipe)
        self._file = open_shard(span.shard, recipe.storage_options, sequential=False)
        self._rest: pa.RecordBatch | None = None
        try:
            with decoding():
                self._start(_open(self._file), span, recipe)
        except BaseException:
            self._file.close()
            raise

    def _start(self, parquet: pq.ParquetFile, span: Span, recipe: ReadRecipe) -> None:
        metadata = parquet.metadata
        check_counts(metadata, span.shard.size)
        starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]).tolist()
        groups = [i for i, (a, b) in enumerate(pairwise(starts)) if a < _stop(span) and b > span.start]
        self._columns = [name for name in recipe.columns if name in parquet.schema_arrow.names]
        self.row = starts[groups[0]] if groups else span.start
        """The next row."""
        self.end = starts[groups[-1] + 1] if groups else span.start
        """Where the row groups end."""
        if self._columns:
            check_chunks(metadata, span.shard.size, self._columns, groups)
            size = _batch_rows(metadata, groups, self._columns)
            self._batches = parquet.iter_batches(size, row_groups=groups, columns=self._columns, use_threads=False)
        else:
            self._batches = iter(
                [pa.RecordBatch.from_arrays([pa.nulls(self.end - self.row)], ["rows without any wanted column"])]
            )

    def rows(self, span: Span) -> Iterator[Raw]:
        """The rows of `span`, none of which has been read."""
        stop = _stop(span)
        while self.row < stop:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise Corrupt(f"rows {self.row} to {stop} are missing")
            n_rows = min(batch.num_rows, (span.start if self.row < span.start else stop) - self.row)
            self._rest = batch.slice(n_rows) if n_rows < batch.num_rows else None
            start, self.row = self.row, self.row + n_rows
            if start >= span.start:
                part = batch.slice(0, n_rows)
                yield Raw(np.arange(start, self.row), {name: part.column(name) for name in self._columns})

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


_parked: dict[object, _Cursor] = {}
_parking = threading.Lock()


def _key(span: Span, recipe: ReadRecipe) -> object:
    return (span.shard, recipe.columns)


def _stop(span: Span) -> int:
    assert span.stop is not None  # the footer told it
    return span.stop


def _take_cursor(span: Span, recipe: ReadRecipe) -> _Cursor:
    """The reader parked in this span's row group at or before its start, or a new one."""
    with _parking:
        cursor = _parked.pop(_key(span, recipe), None)
    if cursor is not None:
        if cursor.row <= span.start and _stop(span) <= cursor.end:
            return cursor
        cursor.close()
    return _Cursor(span, recipe)


def _park(cursor: _Cursor) -> None:
    """Keep the reader if rows are left in its row groups; the oldest one gives way."""
    if cursor.row >= cursor.end:
        cursor.close()
        return
    with _parking:
        leaving = [_parked.pop(cursor.key, None)]
        _parked[cursor.key] = cursor
        if len(_parked) > _PARKED:
            leaving.append(_parked.pop(next(iter(_parked))))
    for other in leaving:
        if other is not None:
            other.close()


def _batch_rows(metadata: pq.FileMetaData, groups: list[int], columns: list[str]) -> int:
    """Rows of a batch, few where a single value may be huge: no value is larger than its column chunk.

    A few kilobytes can stand for gigabytes in a dictionary-encoded column, so the sum of the chunk says nothing of the rows'."""
    wanted = [j for j in range(metadata.num_columns) if metadata.schema.column(j).path.split(".")[0] in columns]
    largest = max((metadata.row_group(i).column(j).total_uncompressed_size for i in groups for j in wanted), default=0)
    return max(_LEAST_ROWS, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _open(file: BinaryIO) -> pq.ParquetFile:
    # A buffer makes column chunks stream instead of being read whole.
    try:
        return pq.ParquetFile(file, buffer_size=_BUFFER, page_checksum_verification=True)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, pa.ArrowException):
            raise
        # An extension type that is registered here, as Ray Data's are, has refused what the file says of it.
        raise Corrupt(f"its schema cannot be read: {type(error).__name__}") from error
