"""Shards, spans and pieces: what the books account for.

A *span* is a range of a shard that is read in one go and in order; a *piece* is what the books account for. A Parquet span
(a row range, known from the footer) is exactly one piece. A JSONL span (a byte range of a plain file, or the whole of a
compressed one) is a chain of pieces, cut while it is read after `piece_bytes` decoded bytes or `MAX_ROWS` rows; its last
piece says so. Spans and pieces depend only on the input and on the table's pinned piece size: never on workers or runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.wording import printable

MAX_ROWS = 20_000
"""Rows in one piece, at most."""


@dataclass(frozen=True, order=True)
class Shard:
    """One input file. `key` is its path relative to the input root (the full URL where there are several roots)."""

    key: str
    url: str
    """fsspec URL without credentials."""
    version: str
    """ETag, or size and modification time."""
    size: int
    """Bytes as stored."""

    @property
    def label(self) -> str:
        """The key as messages have it: whoever can write the input names shards."""
        return printable(self.key)


@dataclass(frozen=True)
class Span:
    """`shard` from `start` to `stop`: row ordinals for Parquet, byte offsets (decompressed) for JSONL."""

    shard: Shard
    start: int
    stop: int | None
    """None: to the end of the shard, wherever that is (compressed JSONL, and shards that cannot be opened)."""
    piece_bytes: int
    """Decoded bytes after which a JSONL span is cut; part of the identity, since it decides where pieces begin."""
    rows: int | None = None
    """Rows, from the Parquet footer; None where they are known only after reading."""
    weight: int = 0
    """Estimated bytes of text, for ordering the work; not part of the identity."""
    unreadable: str | None = None
    """Why the shard could not be opened at planning: the span is then one piece with one quarantine entry."""

    def piece_id(self, index: int) -> str:
        """Id of this span's piece number `index`: 32 hex digits of SHA-256 over shard key, version and range."""
        identity = [self.shard.key, self.shard.version, self.start, self.stop, self.piece_bytes, index]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Todo:
    """A span with work left: pieces whose index is in `done` have a record already and are read past."""

    span: Span
    done: frozenset[int] = frozenset()


def in_order(todos: Iterable[Todo], run_id: str) -> list[Todo]:
    """The order of a run's work: the biggest first, in powers of two; shards of one size in an order of the run's own, the spans
    of each in theirs, from somewhere in its middle.

    Two runs at once that went the same way would encode every piece twice; so each finds what the other has recorded. Spans of
    a shard stay in order since one reader serves those of a large row group.
    """
    of_size: dict[tuple[int, str], list[Todo]] = {}
    for todo in sorted(todos, key=lambda t: t.span.start):
        shard = hashlib.sha256(f"{run_id} {todo.span.shard.key} {todo.span.shard.version}".encode()).hexdigest()
        of_size.setdefault((-todo.span.weight.bit_length(), shard), []).append(todo)
    ordered: list[Todo] = []
    for (_, shard), spans in sorted(of_size.items(), key=lambda item: item[0]):
        first = int(shard[:8], 16) % len(spans)
        ordered += [*spans[first:], *spans[:first]]
    return ordered
