"""Records: what became of each piece. One JSON object for each, written create-only, so the first writer wins.

A record is written after its files and never changes. What a run has left to do is what has no record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import TidemillError
from pipeline.ledger.pieces import Span, Todo
from pipeline.ledger.store import Exists, Store, Unknown

ATTEMPTS = 5
"""Tries to write one record whose outcome stays unknown; the storage libraries repeat requests by themselves below that."""


@dataclass(frozen=True)
class Record:
    """The books' entry for one piece."""

    piece: str
    """`Span.piece_id(index)`."""
    index: int
    """Position in the span's chain; 0 for Parquet."""
    shard: str
    """`Shard.key`."""
    version: str
    """`Shard.version`."""
    start: int
    """Where the piece begins: row ordinal (Parquet) or decompressed byte offset (JSONL)."""
    span_start: int
    """Where its span begins."""
    span_stop: int | None
    """Where its span ends, None: at the end of the shard."""
    stop: int
    """Where the piece really ended."""
    piece_bytes: int
    """The span's piece size."""
    generation: str
    file: str | None
    """Key of the data file; None where no row is out."""
    bytes: int
    """Size of the data file."""
    sha256: str
    """Of the data file."""
    quarantine_file: str | None
    """Key of the quarantine file; None where no row was set aside."""
    rows_in: int
    rows_out: int
    quarantined: dict[str, int]
    """Reason -> rows."""
    filtered: int
    schema: str
    """Fingerprint of the data file's schema."""
    statistics: dict[str, float]
    """Sums over the rows: tokens, segments, truncated, ..."""
    last: bool
    """No piece follows in the span."""

    @property
    def span(self) -> tuple[str, str, int, int | None, int]:
        """Identity of the span that the piece belongs to."""
        return (self.shard, self.version, self.span_start, self.span_stop, self.piece_bytes)


_RECORD = TypeAdapter(Record)

_STRING, _INT = pa.string(), pa.int64()
_COLUMNS: dict[str, pa.DataType] = {
    "piece": _STRING,
    "index": _INT,
    "shard": _STRING,
    "version": _STRING,
    "start": _INT,
    "span_start": _INT,
    "span_stop": _INT,
    "stop": _INT,
    "piece_bytes": _INT,
    "generation": _STRING,
    "file": _STRING,
    "bytes": _INT,
    "sha256": _STRING,
    "quarantine_file": _STRING,
    "rows_in": _INT,
    "rows_out": _INT,
    "quarantined": pa.map_(_STRING, _INT),
    "filtered": _INT,
    "schema": _STRING,
    "statistics": pa.map_(_STRING, pa.float64()),
    "last": pa.bool_(),
}
_MANIFEST = pa.schema(_COLUMNS)


def to_json(record: Record) -> bytes:
    """UTF-8 JSON."""
    return _RECORD.dump_json(record)


def from_json(data: bytes, key: str) -> Record:
    """The record in the object `key`. Unknown fields are passed over; TidemillError where it is no record."""
    try:
        return _checked(_RECORD.validate_json(data))
    except ValueError as error:
        raise TidemillError(f"{key} is not a record: {_reason(error)}; remove the object, and its piece is done again") from None


def to_table(records: Iterable[Record]) -> pa.Table:
    """A manifest: one row for each record."""
    rows = [asdict(r) for r in records]
    maps = ("quarantined", "statistics")
    return pa.Table.from_pylist([{**row, **{m: list(row[m].items()) for m in maps}} for row in rows], schema=_MANIFEST)


def from_table(table: pa.Table, key: str) -> list[Record]:
    """The records in the manifest `key`; TidemillError where it is no manifest."""
    try:
        return [_checked(_RECORD.validate_python(row)) for row in table.to_pylist(maps_as_pydicts="strict")]
    except ValueError as error:
        raise TidemillError(f"{key} is not a manifest: {_reason(error)}; open an older version of the table") from None


def record_key(generation: str, piece: str) -> str:
    """Where the record of a piece lives."""
    return f"_records/{generation}/{piece}.json"


def write_record(store: Store, record: Record, pause: Callable[[float], None] = time.sleep) -> Record:
    """Settle a piece whose files are written; returns the record that stands: ours, or that of a run that was first.

    Raises Unknown where the store gives no answer again and again: the piece then has a record or has none, and the next
    run finds out.
    """
    key = record_key(record.generation, record.piece)
    for attempt in range(ATTEMPTS):
        try:
            store.create(key, to_json(record))
        except Exists:
            winner = read_record(store, record.generation, record.piece)
            if winner is not None:  # else a vacuum removed it since
                return winner
        except Unknown:
            winner = read_record(store, record.generation, record.piece)
            if winner is not None:
                return winner
            if attempt == ATTEMPTS - 1:
                raise
            pause(0.2 * 2**attempt)
        else:
            return record
    raise Unknown(f"{key} was there and was not, {ATTEMPTS} times")


def read_record(store: Store, generation: str, piece: str) -> Record | None:
    """The record of one piece, None where it has none yet."""
    key = record_key(generation, piece)
    try:
        return from_json(store.get(key), key)
    except FileNotFoundError:
        return None


def read_records(store: Store, generation: str, skip: Iterable[str] = ()) -> dict[str, Record]:
    """All records of a generation by piece id, but those in `skip`, which the caller knows already (from a manifest)."""
    known = {record_key(generation, piece) for piece in skip}
    keys = [key for key in store.list(f"_records/{generation}") if key not in known]
    records = [from_json(data, key) for key, data in store.find_many(keys).items()]  # a vacuum may remove some meanwhile
    return {record.piece: record for record in records}


def find_work(spans: Sequence[Span], known: Mapping[str, Record]) -> list[Todo]:
    """The spans that are not complete, in order, each with the indexes of the pieces that have a record.

    A span is complete when its records have the indexes 0, 1, ..., k and the last of them says so. How many pieces a JSONL
    span has is known only from that; a Parquet span's piece 0 is its last.
    """
    chains: dict[tuple[str, str, int, int | None, int], dict[int, bool]] = {}
    for record in known.values():
        chains.setdefault(record.span, {})[record.index] = record.last
    todos = []
    for span in spans:
        chain = chains.get(span_identity(span), {})
        if not is_complete(chain):
            todos.append(Todo(span, frozenset(chain)))
    return todos


def span_identity(span: Span) -> tuple[str, str, int, int | None, int]:
    """What `Record.span` is for the pieces of this span."""
    return (span.shard.key, span.shard.version, span.start, span.stop, span.piece_bytes)


def is_complete(chain: Mapping[int, bool]) -> bool:
    """Whether a span is whole, given its recorded indexes and whether each is `last`."""
    return bool(chain) and set(chain) == set(range(len(chain))) and chain[len(chain) - 1]


def _checked(record: Record) -> Record:
    """Refuses keys that point out of the table, since whoever can write a record must not choose what is read."""
    for key in (record.file, record.quarantine_file):
        if key is not None and (".." in key.split("/") or not key.startswith(("data/", "quarantine/"))):
            raise ValueError(f"file {key!r} lies outside of the table's data")
    return record


def _reason(error: ValueError) -> str:
    """The first thing wrong, without the object's content."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the object'}: {first['msg']}"
    return str(error)
