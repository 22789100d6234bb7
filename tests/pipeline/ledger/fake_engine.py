"""The simulator's input and engine: shards that are only counts of rows, and data files that are only lists of row numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.ledger.pieces import Shard, Span
from pipeline.ledger.records import Record

PIECE_ROWS = 2
"""Rows in a piece of a chain."""

Piece = tuple[int, int, int, bool]
"""index, start, stop, last"""


@dataclass(frozen=True)
class Source:
    """A shard: `rows` rows, read as one Parquet piece or as a chain of pieces."""

    version: str
    rows: int
    chained: bool


@dataclass(frozen=True)
class Job:
    """One run's config and input."""

    run_id: str
    generation: str
    inputs: dict[str, Source]
    keep_removed: bool
    loses: float = 0.0
    """Probability that the engine drops a piece without a word."""


def is_bad(key: str, version: str, row: int) -> bool:
    """Which rows go to quarantine."""
    return hashlib.sha256(f"{key} {version} {row}".encode()).digest()[0] < 64


def spans(inputs: dict[str, Source]) -> list[Span]:
    """One span for each shard."""
    return [
        Span(Shard(key, key, s.version, s.rows), 0, None if s.chained else s.rows, PIECE_ROWS, None if s.chained else s.rows)
        for key, s in sorted(inputs.items())
    ]


def pieces(span: Span) -> Iterator[Piece]:
    """The span's pieces, in order."""
    rows = span.shard.size
    starts = list(range(0, rows, PIECE_ROWS)) or [0] if span.rows is None else [0]
    for index, start in enumerate(starts):
        last = index == len(starts) - 1
        yield index, start, rows if last else start + PIECE_ROWS, last


def encode(job: Job, span: Span, piece: Piece) -> tuple[dict[str, bytes], Record]:
    """The files of a piece (key -> [generation, row, row, ...]) and its record."""
    index, start, stop, last = piece
    shard, version, generation = span.shard.key, span.shard.version, job.generation
    bad = [row for row in range(start, stop) if is_bad(shard, version, row)]
    good = [row for row in range(start, stop) if row not in bad]
    name = f"{generation}/{span.piece_id(index)}-{job.run_id}.parquet"
    data, quarantine = f"data/{name}" if good else None, f"quarantine/{name}" if bad else None
    files = {key: json.dumps([generation, *rows]).encode() for key, rows in ((data, good), (quarantine, bad)) if key}
    record = Record(
        piece=span.piece_id(index),
        index=index,
        shard=shard,
        version=version,
        start=start,
        span_start=span.start,
        span_stop=span.stop,
        stop=stop,
        piece_bytes=span.piece_bytes,
        generation=generation,
        file=data,
        bytes=0,
        sha256="",
        quarantine_file=quarantine,
        rows_in=stop - start,
        rows_out=len(good),
        quarantined={"bad_json": len(bad)} if bad else {},
        filtered=0,
        schema="s",
        statistics={},
        last=last,
    )
    return files, record
