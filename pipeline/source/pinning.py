"""Columns of the input: whether those that the config names are there, and the types that kept columns are pinned to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.kinds import did_you_mean
from pipeline.ledger.pieces import Shard
from pipeline.sections import Input
from pipeline.source.columns import can_be_id
from pipeline.source.jsonl import head
from pipeline.source.listing import partitions
from pipeline.source.parquet import Footer
from pipeline.source.parsing import check_readable
from pipeline.source.types import convertible, extension_name, is_text, parse_type, plain, unify, without_nulls

_SAMPLE_BYTES = 2**20
_LONGEST_NAME = 100
"""Characters of a column's name in a message that lists several."""


@dataclass(frozen=True)
class Sample:
    """The first objects of a JSONL shard."""

    shard: Shard
    objects: tuple[Mapping[str, Any], ...]


def read_sample(shard: Shard, settings: Input) -> Sample:
    """The objects in the first megabyte of a JSONL shard; lines that are none are passed over."""
    values = map(_decode, head(shard, _SAMPLE_BYTES, settings.storage_options))
    return Sample(shard, tuple(value for value in values if isinstance(value, dict)))


def _decode(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def check_columns(
    settings: Input, footers: Mapping[Shard, Footer], samples: Sequence[Sample], fields: Mapping[str, str], *, whole: bool
) -> None:
    """ConfigError where no shard has the text or id column or one that a task needs (column -> field in `fields`), none holds
    text, or a Parquet shard's cannot be read as such.

    `whole`: all shards of the input were looked at; otherwise columns may be missing in the few new ones."""
    # A shard without any row or object that could be read says nothing about its columns.
    for shard, footer in footers.items():
        _check_footer(settings, shard, footer.schema)
    types = [{f.name: f.type for f in footer.schema} for footer in footers.values()]
    seen = [set(t) for t in types] + [{name for value in s.objects for name in value} for s in samples if s.objects]
    if not seen or not whole:
        return
    columns = sorted(set().union(*seen))
    folders = set().union(*(partitions(shard) for shard in [*footers, *(sample.shard for sample in samples)]))
    for name, where in ((settings.text, "input.text"), (settings.id, "input.id"), *fields.items()):
        if name is not None and name not in columns and not (name in fields and name in folders):
            raise ConfigError(
                f"no shard has a column {name!r}{did_you_mean(name, columns)}; there are: {_some(columns)}", field=where
            )
    values = [value.get(settings.text) for sample in samples for value in sample.objects]
    held = {str(t[settings.text]) for t in types if settings.text in t} | {type(v).__name__ for v in values if v is not None}
    texts = any(settings.text in t and (is_text(t[settings.text]) or pa.types.is_null(t[settings.text])) for t in types)
    if held and not texts and not any(isinstance(v, str) for v in values):
        raise ConfigError(
            f"column {settings.text!r} holds no text in any shard but {_some(sorted(held))}; name a column of strings",
            field="input.text",
        )


def _check_footer(settings: Input, shard: Shard, schema: pa.Schema) -> None:
    wanted = [(settings.text, "input.text"), (settings.id, "input.id"), *((name, "input.keep") for name in settings.keep)]
    for name, where in wanted:
        if name is not None and schema.names.count(name) > 1:
            raise ConfigError(f"shard {shard.label} has more than one column {name!r}; rename all but one", field=where)
        extension = extension_name(schema.field(name)) if name is not None and name in schema.names else None
        if extension is not None:
            raise ConfigError(
                f"column {name!r} is of extension type {extension!r} in shard {shard.label}; code may come with such a type, so "
                "none is read: store the column as the plain type below it",
                field=where,
            )
    if settings.id is not None and settings.id in schema.names:
        _check_id(settings.id, schema.field(settings.id).type, f"in shard {shard.label}")


def _check_id(name: str, type_: pa.DataType, where: str) -> None:
    if not can_be_id(type_):
        raise ConfigError(
            f"column {name!r} is {type_} {where}; ids are strings, numbers, times or booleans, so name another column",
            field="input.id",
        )


def pin_types(
    settings: Input,
    footers: Mapping[Shard, Footer],
    samples: Sequence[Sample],
    table: pa.Schema | None,
    fields: Mapping[str, str] = MappingProxyType({}),
) -> pa.Schema:
    """The kept columns with their types: as the config spells them, else as the committed table has them, else as found.

    ConfigError where a column is in no shard, or its types in two shards do not agree."""
    samples = [s for s in samples if s.objects]
    pinned_fields = []
    for name, spelled in settings.keep.items():
        try:
            found = _Found(name, fields.get(name, "input.keep"), _parquet_types(name, footers), _json_values(name, samples))
        except ValueError as error:
            raise ConfigError(f"column {name!r}: {error}", field=fields.get(name, "input.keep")) from error
        pinned = table.field(name).type if table is not None and name in table.names else None
        if not found and (footers or samples) and pinned is None and (spelled is None or not samples):
            raise _missing(name, footers, samples)
        if spelled is not None:
            type_ = parse_type(spelled)
            _check_spelled(found, type_)
        else:
            type_ = pinned or _agreed(found)
        pinned_fields.append(pa.field(name, type_))
    schema = pa.schema(pinned_fields)
    if samples:
        check_readable(schema)
        if settings.id is not None and settings.id in schema.names:
            _check_id(settings.id, schema.field(settings.id).type, "in input.keep")
    return schema


@dataclass(frozen=True)
class _Found:
    """What the opened shards hold in one column."""

    name: str
    field: str
    """Of the config, that names the column."""
    types: Mapping[Shard, pa.DataType]
    """In Parquet shards, and `string` where the column stands in the path."""
    values: Mapping[Shard, Sequence[Any]]
    """In the samples of JSONL shards: no nulls, and of one kind for each shard, the most frequent."""

    def __bool__(self) -> bool:
        return bool(self.types or self.values)


def _parquet_types(name: str, footers: Mapping[Shard, Footer]) -> dict[Shard, pa.DataType]:
    types: dict[Shard, pa.DataType] = {}
    for shard, footer in footers.items():
        if name in partitions(shard):
            types[shard] = pa.string()
        elif name in footer.schema.names:
            types[shard] = plain(footer.schema.field(name).type)
    return types


def _json_values(name: str, samples: Sequence[Sample]) -> dict[Shard, list[Any]]:
    """A few values of another kind are for the quarantine, not for the plan."""
    values: dict[Shard, list[Any]] = {}
    for sample in samples:
        if name in partitions(sample.shard):
            values[sample.shard] = [partitions(sample.shard)[name] or ""]
        elif any(name in value for value in sample.objects):
            present = [value[name] for value in sample.objects if value.get(name) is not None]
            kinds = Counter(map(_kind, present))
            values[sample.shard] = [v for v in present if _kind(v) == kinds.most_common(1)[0][0]]
    return values


def _kind(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _agreed(found: _Found) -> pa.DataType:
    """One type for all shards. Parquet's types come first, since they are exact; JSON has only numbers and strings."""
    agreed: pa.DataType = pa.null()
    before: Shard | None = None
    for shard, type_ in found.types.items():
        both = unify(agreed, type_)
        if both is None:
            raise _conflict(found.name, (before, agreed), (shard, type_))
        agreed, before = both, shard if both != agreed or before is None else before
    kinds = {_kind(values[0]): shard for shard, values in found.values.items() if values}
    if len(kinds) > 1:
        (one, shard), (other, other_shard) = list(kinds.items())[:2]
        raise _conflict(found.name, (shard, one.__name__), (other_shard, other.__name__))
    inferred = _inferred(found.values.values())
    if inferred is None:
        example = f"keep: {{{found.name}: string}}"
        raise ConfigError(
            f"column {found.name!r}: its JSON values have no common type; spell one, as in {example}", field="input.keep"
        )
    both = unify(agreed, inferred) or (agreed if convertible(inferred, agreed) else None)
    if both is None:
        raise _conflict(found.name, (before, agreed), (next(iter(kinds.values())), inferred))
    return without_nulls(both)


def _inferred(values: Iterable[Sequence[Any]]) -> pa.DataType | None:
    """The type of all these JSON values together, None where Arrow finds none."""
    try:
        return plain(pa.array([value for of_shard in values for value in of_shard]).type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError):
        return None


def _check_spelled(found: _Found, spelled: pa.DataType) -> None:
    for shard, type_ in found.types.items():
        if found.name not in partitions(shard) and not convertible(type_, spelled):
            raise ConfigError(
                f"column {found.name!r} is {type_} in shard {shard.label}, which cannot become {spelled}", field=found.field
            )
    for shard, values in found.values.items():
        inferred = _inferred([values])
        if inferred is not None and found.name not in partitions(shard) and not convertible(inferred, spelled):
            raise ConfigError(
                f"column {found.name!r} is {inferred} in shard {shard.label}, which cannot become {spelled}", field=found.field
            )


def _missing(name: str, footers: Mapping[Shard, Footer], samples: Sequence[Sample]) -> ConfigError:
    columns = sorted({n for f in footers.values() for n in f.schema.names} | {n for s in samples for o in s.objects for n in o})
    later = "; if it appears later on in JSONL shards, spell its type" if samples else ""
    return ConfigError(
        f"no shard has a column {name!r}{did_you_mean(name, columns)}; there are: {_some(columns)}{later}", field="input.keep"
    )


def _conflict(name: str, one: tuple[Shard | None, object], other: tuple[Shard, object]) -> ConfigError:
    (shard, type_), (other_shard, other_type) = one, other
    return ConfigError(
        f"column {name!r} is {type_} in shard {shard.label if shard else '?'} but {other_type} in shard {other_shard.label}, and "
        f"no type holds both exactly; spell one that fits, as in keep: {{{name}: float64}}, or leave the column out",
        field="input.keep",
    )


def _some(columns: Sequence[str]) -> str:
    return (
        ", ".join(repr(name)[:_LONGEST_NAME] for name in columns[:20]) + (", ..." if len(columns) > 20 else "")
        if columns
        else "none"
    )
