"""JSONL shards as a stream of lines, cut into byte-range spans before reading and into pieces while reading."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.ledger.pieces import MAX_ROWS, Shard, Span
from pipeline.source.listing import compression_of
from pipeline.source.storage import Corrupt, decoding, open_shard

Offsets = npt.NDArray[np.int64]

COMPRESSION_RATIO = 4
"""Decoded bytes for each stored one, where only a guess is needed."""
_BLOCK = 4 * 2**20
_BOM = b"\xef\xbb\xbf"
_SPACE = tuple(b" \t\r")
"""JSON's whitespace inside a line."""


@dataclass(frozen=True)
class Lines:
    """Lines that are not blank, in order. Line i is `data[starts[i]:stops[i]]`, without the whitespace around it."""

    data: bytes
    end: int
    """Offset in the decompressed shard where `data` ends."""
    rows: Offsets
    """Offset of each line in the decompressed shard."""
    sizes: Offsets
    """Bytes of each line as it stands there; lines above the limit may have been skipped, and have no bytes in `data`."""
    starts: Offsets
    stops: Offsets

    def __getitem__(self, part: slice | npt.NDArray[np.bool_]) -> Lines:
        return replace(self, rows=self.rows[part], sizes=self.sizes[part], starts=self.starts[part], stops=self.stops[part])

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Chunk:
    """The lines of one piece; `torn`: why the shard breaks off in it."""

    index: int
    start: int
    stop: int
    last: bool
    lines: tuple[Lines, ...]
    torn: str | None = None


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...


def cut_spans(shard: Shard, piece_bytes: int) -> list[Span]:
    """Byte ranges that tile a plain shard; a compressed one is a single span with an open end."""
    if compression_of(shard.url):
        return [Span(shard, 0, None, piece_bytes, weight=COMPRESSION_RATIO * shard.size)]
    starts = range(0, max(shard.size, 1), piece_bytes)
    stops = [min(start + piece_bytes, shard.size) for start in starts]
    return [Span(shard, start, stop, piece_bytes, weight=stop - start) for start, stop in zip(starts, stops, strict=True)]


def read_lines(span: Span, max_line: int, options: Mapping[str, Any]) -> Iterator[Lines]:
    """The span's lines in blocks of a few megabytes; the last item tells the end. A line belongs to the span in which it starts.

    Lines longer than `max_line` are skipped while streaming. Raises Corrupt where the stream breaks off."""
    with _open(span, options) as stream:
        # A range does not start a line unless a newline stands right before it: what stands from there to the first newline
        # is another range's.
        line = position = max(0, span.start - 1)
        skipping = span.start > 0
        stop = float("inf") if span.stop is None else span.stop
        pending = bytearray()
        while line < stop and (block := _read(stream, _BLOCK)):
            if skipping:
                newline = block.find(b"\n")
                if newline < 0:
                    position += len(block)
                    if line < span.start and position >= stop:
                        break
                    continue
                if line >= span.start:
                    yield _skipped(line, position + newline)
                position += newline + 1
                line, block, skipping = position, block[newline + 1 :], False
            pending += block
            position += len(block)
            whole = pending.rfind(b"\n", len(pending) - len(block)) + 1
            if whole:
                yield _split(bytes(pending[:whole]), line, stop)
                del pending[:whole]
                line += whole
            if len(pending) > max_line:
                pending.clear()
                skipping = True
        if span.start <= line < min(stop, position):
            yield _skipped(line, position) if skipping else _split(bytes(pending), line, stop)
        yield _skipped(position, position)[:0]


def cut_chunks(blocks: Iterable[Lines], span: Span) -> Iterator[Chunk]:
    """Cut before the first line that starts `span.piece_bytes` behind the piece's start, or where the piece has MAX_ROWS rows.

    Where the cuts fall depends on the content alone. The last chunk says so and may be empty or torn."""
    index, start, rows, end = 0, span.start, 0, span.start
    held: list[Lines] = []
    try:
        for block in blocks:
            end, rest = block.end, block
            while len(rest):
                fits = min(int(np.searchsorted(rest.rows, start + span.piece_bytes)), MAX_ROWS - rows)
                held.append(rest[:fits])
                rows += len(held[-1])
                rest = rest[fits:]
                if len(rest):
                    stop = int(rest.rows[0])
                    yield Chunk(index, start, stop, False, tuple(held))
                    index, start, rows, held = index + 1, stop, 0, []
    except Corrupt as error:
        yield Chunk(index, start, start, True, (), torn=str(error))
        return
    yield Chunk(index, start, end if span.stop is None else span.stop, True, tuple(held))


def head(shard: Shard, size: int, options: Mapping[str, Any]) -> list[bytes]:
    """The lines that lie whole in the first `size` bytes, as far as they can be decoded."""
    content, whole = b"", False
    with _open(Span(shard, 0, None, 0), options) as stream, suppress(Corrupt):
        while len(content) < size and (block := _read(stream, size // 16)):
            content += block
        whole = len(content) < size
    if not whole:
        content = content[: content.rfind(b"\n") + 1]
    lines = _split(content + b"\n", 0, float("inf"))
    return [content[a:b] for a, b in zip(lines.starts.tolist(), lines.stops.tolist(), strict=True)]


def first_lines(span: Span, n_lines: int, max_line: int, options: Mapping[str, Any]) -> tuple[int, int | None]:
    """How many of the first `n_lines` lines the span has, and where it stops to have no more. A torn end is a line."""
    seen = 0
    try:
        for lines in read_lines(span, max_line, options):
            if seen + len(lines) > n_lines:
                return n_lines, int(lines.rows[n_lines - seen])
            seen += len(lines)
    except Corrupt:
        seen += 1
    return seen, span.stop


def _split(data: bytes, base: int, stop: float) -> Lines:
    """The lines of `data`, which begins a line at offset `base`; those that start at `stop` or later are left out."""
    content = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(content == ord("\n"))
    starts = np.concatenate([[0], newlines + 1])
    stops = np.concatenate([newlines, [len(data)]])
    rows, sizes = base + starts, stops - starts
    if base == 0 and data.startswith(_BOM):
        starts[0] = len(_BOM)
    _trim(data, content, starts, stops)
    kept = (rows < stop) & (stops > starts)
    return Lines(data, base + len(data), rows[kept], sizes[kept], starts[kept], stops[kept])


def _trim(data: bytes, content: npt.NDArray[np.uint8], starts: Offsets, stops: Offsets) -> None:
    """Move starts and stops over whitespace. All carriage returns at once; other lines with space at an end are few."""
    stops -= (stops > starts) & (content[stops - 1] == ord("\r"))
    filled = stops > starts
    at_end = np.isin(content[stops - 1], _SPACE) | np.isin(content[np.minimum(starts, len(data) - 1)], _SPACE)
    for i in np.flatnonzero(filled & at_end):
        line = data[starts[i] : stops[i]]
        starts[i] += len(line) - len(line.lstrip(bytes(_SPACE)))
        stops[i] = max(starts[i], starts[i] + len(line.strip(bytes(_SPACE))))


def _skipped(start: int, stop: int) -> Lines:
    """One line that was not held in memory."""
    zero = np.zeros(1, np.int64)
    return Lines(b"", stop, zero + start, zero + stop - start, zero, zero)


def _read(stream: _Stream, size: int) -> bytes:
    with decoding():
        return stream.read(size)


@contextmanager
def _open(span: Span, options: Mapping[str, Any]) -> Iterator[_Stream]:
    with open_shard(span.shard, options, sequential=True) as file:
        compression = compression_of(span.shard.url)
        if compression == "gz":
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream
        elif compression == "zst":
            # Arrow's reader tells a stream that breaks off from one that ends, and takes frames one after another.
            yield pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        else:
            file.seek(max(0, span.start - 1))
            yield file
