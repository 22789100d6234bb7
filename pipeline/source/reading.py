"""Reading one span on a worker: pieces of documents in the pinned types, with a quarantine entry for each row that is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from operators.schema import ID, ROW, documents_schema
from pipeline import quarantine
from pipeline.batch import Batch
from pipeline.ledger.pieces import Span, Todo
from pipeline.quarantine import Entry
from pipeline.source import parquet
from pipeline.source.columns import ReadRecipe, to_documents
from pipeline.source.jsonl import Chunk, cut_chunks, read_lines
from pipeline.source.listing import format_of
from pipeline.source.parsing import Parser, line_limit
from pipeline.source.storage import Corrupt, check_unchanged

__all__ = ["ReadRecipe", "read_span", "unreadable"]

_RATIO = 32
"""Times its stored size that a piece may be decoded, beyond MAX_PIECE: what honest columns compress to."""
MAX_PIECE = 256 * 2**20
"""Decoded bytes in one piece, kept columns and ids included, unless `input.piece` or `input.max_document` ask for more. A footer
does not tell them: half a megabyte of dictionary and indices can stand for gigabytes."""


def read_span(todo: Todo, recipe: ReadRecipe) -> Iterator[Batch]:
    """The span's pieces in order, without those that are done.

    Raises TidemillError where the shard is no longer the version that was listed: it is looked at before the first byte is read
    and again before each piece is handed on, so no piece mixes two versions. Faults of the store pass through. Content that
    cannot be decoded is a piece with one `unreadable` entry."""
    span = todo.span
    if span.unreadable is not None:
        pieces: Iterable[Batch] = (
            [] if 0 in todo.done else [unreadable(span, recipe, 0, span.start, span.stop or 0, span.unreadable)]
        )
    else:
        check_unchanged(span.shard, recipe.storage_options)
        read = _read_parquet if format_of(span.shard.url, recipe.format) == "parquet" else _read_jsonl
        pieces = read(todo, recipe)
    try:
        for piece in pieces:
            # What was read while the shard was replaced belongs to no version, however well or badly it could be decoded.
            check_unchanged(span.shard, recipe.storage_options)
            yield piece
    except Exception:
        check_unchanged(span.shard, recipe.storage_options)  # where that is why, it says so
        raise


def _read_parquet(todo: Todo, recipe: ReadRecipe) -> Iterator[Batch]:
    span = todo.span
    stop = span.start if span.stop is None else span.stop
    if 0 in todo.done:
        return
    tables: list[pa.Table] = []
    entries: list[Entry] = []
    limit = max(MAX_PIECE, 2 * span.piece_bytes, 2 * recipe.max_document, _RATIO * span.shard.size)
    room = limit
    try:
        for raw in parquet.read_batches(span, recipe):
            documents, bad = to_documents(raw, span.shard, recipe)
            entries += bad
            room -= documents.nbytes
            if room >= 0:
                tables.append(documents)
            else:
                rows = zip(documents[ROW].to_pylist(), documents[ID].to_pylist(), strict=True)
                entries += [
                    Entry(row, quarantine.short(id_), "too_large", f"the rows of its piece come to more than {limit} bytes")
                    for row, id_ in rows
                ]
    except Corrupt as error:
        yield unreadable(span, recipe, 0, span.start, stop, str(error))
        return
    yield _piece(span, recipe, Chunk(0, span.start, stop, True, ()), tables, entries)


def _read_jsonl(todo: Todo, recipe: ReadRecipe) -> Iterator[Batch]:
    span = todo.span
    parser = Parser(recipe, span.shard.key)
    for chunk in cut_chunks(read_lines(span, line_limit(recipe.max_document), recipe.storage_options), span):
        if chunk.index in todo.done:
            continue
        if chunk.torn is not None:
            yield unreadable(span, recipe, chunk.index, chunk.start, chunk.stop, chunk.torn)
            continue
        tables: list[pa.Table] = []
        entries: list[Entry] = []
        for lines in chunk.lines:
            raws, bad = parser.parse(lines)
            entries += bad
            for raw in raws:
                documents, bad = to_documents(raw, span.shard, recipe)
                tables.append(documents)
                entries += bad
        yield _piece(span, recipe, chunk, tables, entries)


def _piece(span: Span, recipe: ReadRecipe, chunk: Chunk, tables: list[pa.Table], entries: list[Entry]) -> Batch:
    documents = pa.concat_tables([documents_schema(recipe.keep).empty_table(), *tables])
    bad = quarantine.table(span.shard.key, sorted(entries, key=lambda e: -1 if e.row is None else e.row))
    rows_in = documents.num_rows + bad.num_rows
    return Batch(span, chunk.index, chunk.start, chunk.stop, chunk.last, rows_in, documents, bad)


def unreadable(span: Span, recipe: ReadRecipe, index: int, start: int, stop: int, why: str) -> Batch:
    """A piece that ends its span, with one entry for all that is left of it."""
    return _piece(span, recipe, Chunk(index, start, stop, True, ()), [], [Entry(None, None, "unreadable", why)])
