"""Delta Lake: a `_delta_log/` over the very files of the ledger, so no row is written twice.

One version of the ledger is one Delta transaction, which adds the files that are new and removes those that are gone. It
carries the ledger's version as an application transaction and is refused where another commit came first, so it happens once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.types as pat
from deltalake import CommitProperties, DeltaTable, Schema, TableFeatures, Transaction
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from pipeline.errors import ConfigError, TidemillError
from pipeline.formats._place import Place, Standing
from pipeline.ledger.publish import Commit, commit_schema
from pipeline.ledger.records import Record

APP = "tidemill"
"""Id of the application transactions; their version is the ledger's."""
CONFIGURATION: dict[str, str | None] = {"delta.deletedFileRetentionDuration": "interval 36500 days"}
"""VACUUM keeps what it does not know: files of older versions, of pieces not published yet, and of the quarantine."""

_SAME = (
    *(pat.is_boolean, pat.is_int8, pat.is_int16, pat.is_int32, pat.is_int64, pat.is_float32, pat.is_float64),
    *(pat.is_string, pat.is_binary, pat.is_date32, pat.is_decimal128),
)
_BAD_IN_NAMES = " ,;{}()\n\t="


@dataclass(frozen=True)
class Change:
    """One Delta transaction to be."""

    version: int
    """Of the ledger."""
    table: DeltaTable | None
    """The state it is made against; None: there is no table yet."""
    schema: Schema
    actions: list[AddAction | RemoveAction]
    replaces: bool
    """All files and the schema are replaced."""


def reads_as(schema: pa.Schema) -> pa.Schema:
    """The schema that readers of Delta see: vectors are lists, dictionaries their values, times microseconds (UTC, if zoned).

    ConfigError names a column that Delta cannot hold."""
    lower = [name.lower() for name in schema.names]
    for name in schema.names:
        if lower.count(name.lower()) > 1:
            raise ConfigError(f"column {name!r}: Delta does not tell upper from lower case; rename one", field="output.format")
    return pa.schema([_field(field, field.name) for field in schema])


def standing(place: Place) -> Standing | None:
    """The Delta table's state; None where there is no table. TidemillError where somebody else made it."""
    try:
        table = DeltaTable(place.url, storage_options=place.options)
    except TableNotFoundError:
        return None
    version = table.transaction_version(APP)
    if version is None:
        raise TidemillError(f"{place.url}/_delta_log is a Delta table that tidemill did not make; give another output.path")
    return Standing(version, table.version(), table)


def prepare(place: Place, at: Standing | None, commit: Commit, records: Sequence[Record]) -> Change:
    """What makes the Delta table hold exactly the files of `records`, whatever it holds now."""
    schema = Schema.from_arrow(reads_as(commit_schema(commit)))
    moment = int(datetime.fromisoformat(commit.created_at).timestamp() * 1000)
    wanted = {r.file: r for r in records if r.file}
    table: DeltaTable | None = at.handle if at else None
    actions = pa.table(table.get_add_actions(flatten=True)) if table else pa.table({"path": [], "size_bytes": []})
    active = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
    replaces = table is not None and table.schema() != schema
    if replaces and not active.keys().isdisjoint(wanted):
        raise TidemillError(
            f"the schema of the Delta table at {place.url} was changed by somebody else; remove its _delta_log/, and the next "
            "run makes it anew from the ledger"
        )
    adds = [_add(record, moment) for file, record in wanted.items() if file not in active]
    gone = [] if replaces else [RemoveAction(p, True, moment, size, {}) for p, size in active.items() if p not in wanted]
    return Change(commit.version, table, schema, [*adds, *gone], replaces)


def switch(place: Place, change: Change) -> None:
    """Commit the transaction against the state that it was made for; an error of deltalake's where another came first."""
    once = CommitProperties(
        app_transactions=[Transaction(APP, change.version)],
        custom_metadata={"tidemill_version": str(change.version)},
        max_commit_retries=0,
    )
    if change.table is None:
        adds = [action for action in change.actions if isinstance(action, AddAction)]
        create_table_with_add_actions(
            place.url, change.schema, adds, mode="error", description="kept by tidemill; the ledger beside it is the truth",
            configuration=CONFIGURATION, storage_options=place.options, commit_properties=once,
        )  # fmt: skip
        return
    # delta-rs replaces a schema as it is told, also by one that readers then refuse for want of the feature.
    if change.replaces and "timestamp_ntz" in change.schema.to_json() and not _has_zoneless(change.table):
        change.table.alter.add_feature(TableFeatures.TimestampWithoutTimezone, allow_protocol_versions_increase=True)
    mode = "overwrite" if change.replaces else "append"
    change.table.create_write_transaction(change.actions, mode, change.schema, commit_properties=once)


def read(place: Place, own: int) -> ds.Dataset:
    """The rows of a Delta version."""
    return DeltaTable(place.url, version=own, storage_options=place.options).to_pyarrow_dataset()


def _add(record: Record, moment: int) -> AddAction:
    assert record.file is not None
    return AddAction(record.file, record.bytes, {}, moment, True, json.dumps({"numRecords": record.rows_out}))


def _has_zoneless(table: DeltaTable) -> bool:
    return "timestampNtz" in (table.protocol().reader_features or [])


def _field(field: pa.Field, where: str) -> pa.Field:
    if set(field.name) & set(_BAD_IN_NAMES):
        raise ConfigError(
            f"column {where!r}: Delta allows none of {_BAD_IN_NAMES!r} in a name; rename it, or take output.format: parquet",
            field="output.format",
        )
    return pa.field(field.name, _type(field.type, where), field.nullable)


def _type(type_: pa.DataType, where: str) -> pa.DataType:
    if any(same(type_) for same in _SAME):
        return type_
    if pat.is_dictionary(type_):
        return _type(type_.value_type, where)
    if pat.is_list(type_) or pat.is_large_list(type_) or pat.is_fixed_size_list(type_):
        return pa.list_(pa.field("element", _type(type_.value_type, where)))
    if pat.is_struct(type_):
        return pa.struct([_field(field, f"{where}.{field.name}") for field in type_])
    if pat.is_map(type_):
        return pa.map_(_type(type_.key_type, where), _type(type_.item_type, where))
    if pat.is_timestamp(type_) and type_.unit != "ns":
        return pa.timestamp("us", "UTC" if type_.tz else None)
    raise ConfigError(f"column {where!r}: Delta has no {type_}; {_instead(type_)}", field="output.format")


def _instead(type_: pa.DataType) -> str:
    if pat.is_float16(type_):
        return "take dtype: float32 (or keep it as float32), or output.format: lance or parquet"
    kinds = {pat.is_unsigned_integer: "a signed type", pat.is_timestamp: "timestamp[us]"}
    other = next((name for test, name in kinds.items() if test(type_)), "another type")
    return f"keep it as {other} (input.keep), or take output.format: lance or parquet"
