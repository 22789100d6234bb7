"""From the columns as a shard holds them to documents of the pinned types, what does not fit set aside with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from operators.schema import documents_schema
from pipeline.ledger.pieces import Shard
from pipeline.quarantine import Entry, short
from pipeline.source.listing import partitions
from pipeline.source.types import convertible, is_string, is_text, plain

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReadRecipe:
    """What a worker has to know to read any span; picklable."""

    text: str
    id: str | None
    keep: pa.Schema
    """Kept columns in their pinned types."""
    max_document: int
    """Bytes of UTF-8; longer ones are `too_large`."""
    format: Literal["auto", "parquet", "jsonl"] = "auto"
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that are read, each once."""
        return tuple(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.keep.names]))


@dataclass(frozen=True)
class Raw:
    """Rows as read."""

    rows: npt.NDArray[np.int64]
    """`_row` of each."""
    columns: Mapping[str, pa.Array]
    """By name, in whatever types the shard has them; those that it lacks are not here."""


class _Reasons:
    """The first reason found against each row."""

    def __init__(self, n_rows: int) -> None:
        self.good = np.ones(n_rows, bool)
        self.found: dict[int, tuple[str, str]] = {}

    def add(self, mask: Mask, reason: str, detail: Callable[[int], str]) -> None:
        for row in np.flatnonzero(mask & self.good):
            self.found[int(row)] = (reason, detail(int(row)))
        self.good &= ~mask


def to_documents(raw: Raw, shard: Shard, recipe: ReadRecipe) -> tuple[pa.Table, list[Entry]]:
    """Documents (`operators.schema.documents_schema`) and quarantine entries, both in input order."""
    reasons = _Reasons(len(raw.rows))
    text = _text(raw.columns.get(recipe.text), recipe.max_document, reasons)
    folders = partitions(shard)
    keep = []
    for column in recipe.keep:
        if column.name in folders:
            keep.append(_partition(column, folders[column.name], reasons))
        else:
            keep.append(_kept(column, raw.columns.get(column.name), reasons))
    default = pc.binary_join_element_wise(pa.scalar(shard.key), pa.array(raw.rows).cast(pa.string()), "#")
    ids, own_ids = _ids(raw.columns.get(recipe.id or ""), default, reasons)
    entries = [Entry(int(raw.rows[row]), short(own_ids[row].as_py()), *reasons.found[row]) for row in sorted(reasons.found)]
    columns = [pa.array(raw.rows), *keep, ids, text]
    if not reasons.good.all():
        good = pa.array(reasons.good)
        columns = [column.filter(good) for column in columns]
    documents = pa.Table.from_arrays(columns, schema=documents_schema(recipe.keep))
    return documents, entries


def cast_each(column: pa.Array, convert: Callable[[pa.Array], pa.Array], type_: pa.DataType) -> tuple[pa.Array, Mask]:
    """`convert(column)` with nulls of `type_` where it raises ArrowInvalid, and a mask of those rows.

    Halves what fails: b bad rows among n cost about b log n conversions, and none of them is per-row work for good rows."""
    try:
        return convert(column), np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        if len(column) == 1:
            return pa.nulls(1, type_), np.ones(1, bool)
    half = len(column) // 2
    # take() and not slice(): validation of a nested slice looks at values outside of it.
    parts = [cast_each(column.take(pa.array(np.arange(a, b))), convert, type_) for a, b in ((0, half), (half, len(column)))]
    return pa.concat_arrays([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _text(column: pa.Array | None, max_document: int, reasons: _Reasons) -> pa.Array:
    """The text as large_string, nulls and bad rows reported."""
    n_rows = len(reasons.good)
    missing = pa.nulls(n_rows, pa.large_string())
    if column is None:
        reasons.add(np.ones(n_rows, bool), "null_text", lambda _: "the shard has no text column")
        return missing
    reasons.add(column.is_null().to_numpy(zero_copy_only=False), "null_text", lambda _: "text is null or missing")
    if not is_text(column.type):
        reasons.add(np.ones(n_rows, bool), "not_text", lambda _: f"text is {column.type}")
        return missing
    encoded = column.cast(pa.large_binary())
    sizes = pc.fill_null(pc.binary_length(encoded), 0).to_numpy(zero_copy_only=False)
    too_large = sizes > max_document
    reasons.add(too_large, "too_large", lambda row: f"text of {sizes[row]} bytes; input.max_document is {max_document}")
    if too_large.any():
        encoded = pc.if_else(pa.array(too_large), pa.scalar(None, pa.large_binary()), encoded)
    text, bad = cast_each(encoded, lambda part: part.cast(pa.large_string()), pa.large_string())
    reasons.add(bad, "bad_encoding", lambda row: f"text of {sizes[row]} bytes is not UTF-8")
    return text


def _ids(column: pa.Array | None, default: pa.Array, reasons: _Reasons) -> tuple[pa.Array, pa.Array]:
    """Ids, `default` where there is none; and the same for the quarantine, null where a row's own could not be read."""
    if column is None:
        return default, default
    values, bad = _strings(column)
    reasons.add(bad, "bad_encoding", lambda _: "the id is not UTF-8")
    ids = pc.coalesce(values, default)
    return ids, pc.if_else(pa.array(bad), pa.scalar(None, pa.string()), ids)


def can_be_id(type_: pa.DataType) -> bool:
    """Whether each value of this type has one string that stands for it; of bytes only those that can be taken for UTF-8."""
    value = type_.value_type if pat.is_dictionary(type_) else type_
    return is_text(type_) or (
        (pat.is_primitive(value) or pat.is_null(value) or pat.is_decimal(value)) and not pat.is_interval(value)
    )


def _strings(column: pa.Array) -> tuple[pa.Array, Mask]:
    if not is_text(column.type):
        return column.cast(pa.string()), np.zeros(len(column), bool)
    return cast_each(column.cast(pa.binary()), lambda part: part.cast(pa.string()), pa.string())


def _kept(wanted: pa.Field, column: pa.Array | None, reasons: _Reasons) -> pa.Array:
    """One kept column in its pinned type."""
    if column is None:
        return pa.nulls(len(reasons.good), wanted.type)
    seen = plain(column.type)
    if is_string(seen) and is_string(wanted.type):
        values, bad = _strings(column)
        reasons.add(bad, "bad_encoding", lambda _: f"column {wanted.name!r} is not UTF-8")
        return values
    if not convertible(seen, wanted.type):
        reasons.add(
            column.is_valid().to_numpy(zero_copy_only=False),
            "bad_value",
            lambda _: f"column {wanted.name!r} is {seen}, not {wanted.type}",
        )
        return pa.nulls(len(column), wanted.type)
    values, bad = cast_each(column, lambda part: _validated(part.cast(wanted.type)), wanted.type)
    reasons.add(bad, "bad_value", lambda _: f"column {wanted.name!r} holds a value that does not fit {wanted.type}")
    return values


def _partition(wanted: pa.Field, value: str | None, reasons: _Reasons) -> pa.Array:
    """A kept column that stands in the shard's path; the path wins over a column of that name in the shard."""
    n_rows = len(reasons.good)
    try:
        scalar = pa.scalar(value, pa.string()).cast(wanted.type)
    except pa.ArrowInvalid:
        reasons.add(
            np.ones(n_rows, bool), "bad_value", lambda _: f"folder {wanted.name}=... of the path does not fit {wanted.type}"
        )
        scalar = pa.scalar(None, wanted.type)
    return pa.repeat(scalar, n_rows)


def _validated(column: pa.Array) -> pa.Array:
    """Nested columns may hold strings that are not UTF-8; ArrowInvalid then."""
    if pat.is_nested(column.type):
        column.validate(full=True)
    return column
