"""A table whose versions are written by hand, without a model, and values of every type, for the tests of table formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from pipeline import quarantine, sink
from pipeline.batch import Batch
from pipeline.following import LEDGER, find_format, follow
from pipeline.formats._place import Place, locate
from pipeline.kinds import modules
from pipeline.ledger.pieces import Shard, Span
from pipeline.ledger.publish import Commit, Draft, encode_schema, head, publish
from pipeline.ledger.records import read_records
from pipeline.ledger.store import Store, open_store
from pipeline.table import open_output

import pipeline.formats  # isort: skip

FORMATS = modules(pipeline.formats)
FOLLOWERS = [name for name in FORMATS if name != LEDGER]
SCHEMA = sink.output_schema(
    pa.schema([("lang", pa.string())]), {"v": pa.list_(pa.float32(), 3), "e": pa.list_(pa.struct([("label", pa.string())]))}, []
)
OTHER_SCHEMA = sink.output_schema(pa.schema([("at", pa.timestamp("us"))]), {"w": pa.float32()}, [])


def value(type_: pa.DataType, i: int) -> Any:
    """The i-th value of a type: every third one is null, lists are of lengths 0, 1, 2, ..."""
    if i % 3 == 2:
        return None
    if pat.is_dictionary(type_):
        return value(type_.value_type, i)
    if pat.is_fixed_size_list(type_):
        return [_plain(type_.value_type, i + k) for k in range(type_.list_size)]
    if pat.is_list(type_):
        return [value(type_.value_type, i + k) for k in range(i % 4)]
    if pat.is_struct(type_):
        return {f.name: value(f.type, i + k) for k, f in enumerate(type_)}
    if pat.is_map(type_):
        return [(_plain(type_.key_type, i + k), value(type_.item_type, i + k)) for k in range(i % 3)]
    return _plain(type_, i)


def _plain(type_: pa.DataType, i: int) -> Any:
    if pat.is_timestamp(type_):
        return pa.scalar(datetime(2026, 11, 28) + timedelta(seconds=i), pa.timestamp(type_.unit)).cast(type_)
    makers: dict[Any, Any] = {
        pat.is_string: f"w{i % 5}",
        pat.is_binary: bytes([i % 256]),
        pat.is_boolean: i % 2 == 0,
        pat.is_date: date(2026, 11, 1 + i % 28),
        pat.is_decimal: Decimal(i) / 4,
        pat.is_floating: i / 4,
        pat.is_integer: i % 100,
    }
    return next(made for test, made in makers.items() if test(type_))


def rows(key: str, count: int, schema: pa.Schema = SCHEMA, seed: int = 0) -> pa.Table:
    """The rows of a shard."""
    fixed: dict[str, list[Any]] = {
        "_shard": [key] * count,
        "_row": list(range(count)),
        "id": [f"{key}#{i}" for i in range(count)],
    }
    columns = {}
    for f in schema:
        values = fixed.get(f.name) or [(value if f.nullable else _plain)(f.type, i + seed) for i in range(count)]
        columns[f.name] = pa.array(values, f.type)
    return pa.table(columns, schema=schema)


@dataclass
class Ledger:
    """A table at `url`; `shards` is the input."""

    url: str
    options: dict[str, Any]
    shards: dict[str, tuple[int, pa.Table]] = field(default_factory=dict)
    """Key -> version and rows."""

    @property
    def store(self) -> Store:
        """Opened anew."""
        return open_store(self.url, self.options)

    @property
    def place(self) -> Place:
        """Of the table."""
        return locate(self.store, self.options)

    def put(self, key: str, table: pa.Table) -> None:
        """A new or changed shard."""
        self.shards[key] = (self.shards[key][0] + 1 if key in self.shards else 1, table)

    def publish(self, generation: str = "a1", schema: pa.Schema = SCHEMA, **pins: Any) -> Commit:
        """One run over the shards as they are."""
        store = self.store
        known, records = read_records(store, generation), []
        for key, (version, table) in self.shards.items():
            count = table.num_rows
            span = Span(Shard(key, key, str(version), 1), 0, count, 1 << 20, rows=count)
            batch = Batch(span, 0, 0, count, True, count, table, quarantine.table(key, []))
            records.append(known.get(batch.id) or sink.write(store, generation, batch)[0])
        newest = head(store)
        return publish(
            store,
            Draft(
                run_id="r",
                generation=generation,
                fingerprint={},
                pins=pins,
                schema=encode_schema(schema),
                records=records,
                shards=frozenset(self.shards),
                keep_removed=False,
                base=newest.version if newest else 0,
            ),
            count_duplicates=lambda records: 0,
        )

    def follow(self, name: str, commit: Commit) -> int:
        """Bring a format up to a version; returns the format's own."""
        report = follow(name, self.store, self.options, commit)
        assert report["format"] == name
        own: int = report["format_version"]
        return own

    def expected(self, version: int | None = None) -> list[dict[str, Any]]:
        """The rows that the ledger has."""
        return ordered(open_output(self.url, version=version, storage_options=self.options).to_table())

    def read(self, name: str, own: int) -> list[dict[str, Any]]:
        """The rows that the format has."""
        return ordered(find_format(name).read(self.place, own).to_table())

    def state(self, name: str) -> tuple[int, int] | None:
        """The ledger's version and the format's own that it stands at."""
        at = find_format(name).standing(self.place)
        return (at.version, at.own) if at else None


def ordered(table: pa.Table) -> list[dict[str, Any]]:
    """Rows by shard and position."""
    found: list[dict[str, Any]] = table.to_pylist()
    return sorted(found, key=lambda row: (row["_shard"], row["_row"]))
