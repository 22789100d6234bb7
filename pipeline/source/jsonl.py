"""JSONL shards as a stream of lines, cut into byte-range spans before reading and into pieces while reading."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard

from pipeline.ledger.pieces import MAX_ROWS, Shard, Span
from pipeline.source.listing import compression_of
from pipeline.source.storage import Corrupt, open_shard

Offsets = npt.NDArray[np.int64]

COMPRESSION_RATIO = 4
"""Decoded bytes for each stored one, where only a guess is needed."""
_BLOCK = 4 * 2**20
_FEED = 512
"""Compressed bytes given to a decoder at once. Zstandard can make 128 KiB of four bytes, so 16 MiB come out at most."""
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


def cut_spans(shard: Shard, piece_bytes: int) -> list[Span]:
    """Byte ranges that tile a plain shard; a compressed one is a single span with an open end."""
    if compression_of(shard.url):
        return [Span(shard, 0, None, piece_bytes, weight=COMPRESSION_RATIO * shard.size)]
    starts = range(0, max(shard.size, 1), piece_bytes)
    stops = [min(start + piece_bytes, shard.size) for start in starts]
    return [Span(shard, start, stop, piece_bytes, weight=stop - start) for start, stop in zip(starts, stops, strict=True)]


def read_lines(span: Span, max_line: int, options: Mapping[str, Any]) -> Iterator[Lines]:
    """The span's lines in blocks of a few megabytes; the last item tells the end. A line belongs to the span in which it starts.

    Lines longer than `max_line` are skipped while streaming. Raises Corrupt where the stream breaks off, after all lines that
    lie whole before."""
    with closing(_blocks(span, _BLOCK, options)) as blocks:
        # A range does not start a line unless a newline stands right before it: what stands from there to the first newline
        # is another range's.
        line = position = max(0, span.start - 1)
        skipping = span.start > 0
        stop = float("inf") if span.stop is None else span.stop
        pending = bytearray()
        while line < stop and (block := next(blocks, b"")):
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

    Where the cuts fall depends on the content alone. The last chunk says so and may be empty or torn; a chunk whose lines were
    all read before the shard breaks off is not the torn one."""
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
        if held and (end >= start + span.piece_bytes or rows == MAX_ROWS):  # the next line would be another chunk's
            yield Chunk(index, start, end, False, tuple(held))
            index, start = index + 1, end
        yield Chunk(index, start, start, True, (), torn=str(error))
        return
    yield Chunk(index, start, end if span.stop is None else span.stop, True, tuple(held))


def head(shard: Shard, size: int, options: Mapping[str, Any]) -> list[bytes]:
    """The lines that lie whole in the first `size` bytes, as far as they can be decoded."""
    content, whole = b"", False
    with closing(_blocks(Span(shard, 0, None, 0), size // 16, options)) as blocks, suppress(Corrupt):
        while len(content) < size and (block := next(blocks, b"")):
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


def _blocks(span: Span, size: int, options: Mapping[str, Any]) -> Generator[bytes, None, None]:
    """The decoded bytes from one before the span's start on, `size` at a time.

    Raises Corrupt where they break off, after all that could be decoded."""
    with open_shard(span.shard, options, sequential=True) as file:
        compression = compression_of(span.shard.url)
        if compression is None:
            file.seek(max(0, span.start - 1))
            while block := file.read(size):
                yield block
            return
        held = bytearray()
        torn: Corrupt | None = None
        try:
            for part in _gzip(file) if compression == "gz" else _zstandard(file):
                held += part
                while len(held) >= size:
                    yield bytes(held[:size])
                    del held[:size]
        except Corrupt as error:
            torn = error
        if held:
            yield bytes(held)
        if torn is not None:
            raise torn


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    """The content of all members, with zeros allowed between them."""
    member = None
    padding = b""
    for feed in _feeds(file):
        data = feed
        while data := data.lstrip(padding) if member is None else data:
            member = member or zlib.decompressobj(16 + zlib.MAX_WBITS)
            before = member.copy()
            try:
                yield member.decompress(data)
            except zlib.error as error:
                yield from _byte_by_byte(before, data)
                raise Corrupt(str(error)) from error
            data = member.unused_data
            if member.eof:
                member, padding = None, b"\0"
    if member is not None:
        raise Corrupt("the file ends inside of a gzip member")


def _byte_by_byte(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What comes before the fault in `data`; a call that fails gives nothing of what it has decoded."""
    with suppress(zlib.error):
        for i in range(len(data)):
            yield member.decompress(data[i : i + 1])


def _zstandard(file: BinaryIO) -> Iterator[bytes]:
    """The content of all frames."""
    frame = None
    for feed in _feeds(file):
        data = feed
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise Corrupt(str(error)) from error
            data = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise Corrupt("the file ends inside of a zstandard frame")


def _feeds(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        for i in range(0, len(block), _FEED):
            yield block[i : i + _FEED]
