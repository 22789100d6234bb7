"""What a run will read: the pinned types of kept columns, the size of a piece, and the spans of every shard.

Only shards that the table does not hold whole are opened: Parquet footers in threads, and the first lines of a few JSONL
shards. What is wrong with the columns is a `ConfigError` here, before any worker starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

import pyarrow as pa

from pipeline.errors import Incomplete, TidemillError
from pipeline.ledger.pieces import Shard, Span
from pipeline.remote import is_transient, plain
from pipeline.sections import Input
from pipeline.source import jsonl, parquet
from pipeline.source.listing import Listing, format_of
from pipeline.source.parquet import Footer
from pipeline.source.parsing import line_limit
from pipeline.source.pinning import Sample, check_columns, pin_types, read_sample
from pipeline.source.storage import Corrupt, check_unchanged

_SMALLEST_PIECE, _LARGEST_PIECE = 2**20, 32 * 2**20
_PIECES = 512
"""Pieces that the whole input is cut into, as far as the sizes above allow."""
_THREADS = 16
_SAMPLED_SHARDS = 16

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pins:
    """What the committed table holds fast."""

    piece_bytes: int | None = None
    schema: pa.Schema | None = None
    """Of the table; its kept columns' types win."""


@dataclass(frozen=True)
class SourcePlan:
    """What will be read, and as what."""

    keep: pa.Schema
    """Kept columns in the config's order, with their pinned types."""
    spans: list[Span]
    """In shard order; every shard of the listing is tiled by its spans, unless `input.limit` cuts them off."""
    piece_bytes: int
    text_bytes: int
    """Of all spans; an estimate for compressed JSONL."""


@dataclass(frozen=True)
class _Opened:
    """A Parquet shard's footer, or why it has none."""

    shard: Shard
    footer: Footer | None
    unreadable: str | None = None


def plan_source(
    settings: Input,
    listing: Listing,
    pins: Pins,
    settled: Mapping[tuple[str, str], list[Span]],
    fields: Mapping[str, str] = MappingProxyType({}),
) -> SourcePlan:
    """Open what has to be opened and cut all shards of `listing` into spans.

    `settled`: (key, version) -> spans of the shards that the committed table holds whole; they are taken as they are, and
    not opened unless a kept column's type has to be found. `fields`: kept columns that tasks need, with the field that names
    them. ConfigError for columns that are missing or do not agree."""
    known = {
        name
        for name, spelled in settings.keep.items()
        if spelled is not None or (pins.schema is not None and name in pins.schema.names)
    }
    if known != set(settings.keep):
        settled = {}
    new = [shard for shard in listing.shards if (shard.key, shard.version) not in settled]
    opened = {o.shard: o for o in _open_parquet([s for s in new if format_of(s.url, settings.format) == "parquet"], settings)}
    footers = {o.shard: o.footer for o in opened.values() if o.footer is not None}
    samples = _sample([s for s in new if s not in opened], settings)
    check_columns(settings, footers, samples, fields, whole=not settled)
    keep = pin_types(settings, footers, samples, pins.schema, fields)
    piece_bytes = _piece_bytes(settings, pins, new, opened)
    spans: list[Span] = []
    for shard in listing.shards:
        held = settled.get((shard.key, shard.version))
        spans += [replace(span, shard=shard) for span in held] if held else _cut(shard, opened.get(shard), piece_bytes)
    if settings.limit is not None:
        spans = list(_first_rows(spans, settings, settings.limit))
    return SourcePlan(keep, spans, piece_bytes, sum(span.weight for span in spans))


def _open_parquet(shards: Sequence[Shard], settings: Input) -> list[_Opened]:
    def opened(shard: Shard) -> _Opened:
        try:
            return _Opened(shard, parquet.read_footer(shard, settings.text, settings.storage_options))
        except Corrupt as error:
            check_unchanged(shard, settings.storage_options)  # a shard that was just replaced is not corrupt
            return _Opened(shard, None, str(error))

    return _threaded(opened, shards)


def _sample(shards: Sequence[Shard], settings: Input) -> list[Sample]:
    step = max(1, len(shards) // _SAMPLED_SHARDS)
    return _threaded(lambda shard: read_sample(shard, settings), shards[::step][:_SAMPLED_SHARDS])


def _threaded(work: Callable[[Shard], _T], shards: Sequence[Shard]) -> list[_T]:
    def guarded(shard: Shard) -> _T:
        try:
            return work(shard)
        except TidemillError:
            raise
        except Exception as error:  # each store's library raises its own
            kind, what = (Incomplete, plain(error)) if is_transient(error) else (TidemillError, type(error).__name__)
            raise kind(f"cannot open shard {shard.label}: {what}; check the store and run again") from error

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(guarded, shards))


def _piece_bytes(settings: Input, pins: Pins, new: Iterable[Shard], opened: Mapping[Shard, _Opened]) -> int:
    if settings.piece != "auto":
        return settings.piece
    if pins.piece_bytes is not None:
        return pins.piece_bytes
    text_bytes = sum(span.weight for shard in new for span in _cut(shard, opened.get(shard), _LARGEST_PIECE))
    return min(max(text_bytes // _PIECES, _SMALLEST_PIECE), _LARGEST_PIECE)


def _cut(shard: Shard, opened: _Opened | None, piece_bytes: int) -> list[Span]:
    if opened is None:
        return jsonl.cut_spans(shard, piece_bytes)
    if opened.footer is None:
        return [Span(shard, 0, None, piece_bytes, unreadable=opened.unreadable)]
    return parquet.cut_spans(shard, opened.footer.groups, piece_bytes)


def _first_rows(spans: Iterable[Span], settings: Input, limit: int) -> Iterable[Span]:
    """The spans that hold the first `limit` rows; the last one is cut. Lines of JSONL shards are counted here and now."""
    left = limit
    for span in spans:
        if left <= 0:
            return
        if span.rows is not None and span.stop is not None:
            rows = min(span.rows, left)
            yield replace(span, stop=span.start + rows, rows=rows, weight=span.weight * rows // max(1, span.rows))
        elif span.unreadable is not None:
            rows = 1
            yield span
        else:
            rows, stop = jsonl.first_lines(span, left, line_limit(settings.max_document), settings.storage_options)
            yield replace(span, stop=stop, weight=span.weight if stop is None else min(span.weight, stop - span.start))
        left -= rows
