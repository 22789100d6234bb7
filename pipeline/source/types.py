"""Arrow types of kept columns: how a config spells them, how those of several shards become one, and what counts as text."""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.types as pat

_NAMES = (
    *("string", "binary", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *(
        "float16",
        "float32",
        "float64",
        "float",
        "double",
        "date32",
        "timestamp[s]",
        "timestamp[ms]",
        "timestamp[us]",
        "timestamp[ns]",
    ),
)
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns),\s*(?:tz=)?([A-Za-z0-9_/+:-]+)\]")
_LIST = re.compile(r"list<\s*(?:(?:item|element):\s*)?(.+?)\s*>")

_EXACT = {
    **{
        f(): (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for f, bits in ((pa.int8, 8), (pa.int16, 16), (pa.int32, 32), (pa.int64, 64))
    },
    **{f(): (0, 2**bits - 1) for f, bits in ((pa.uint8, 8), (pa.uint16, 16), (pa.uint32, 32), (pa.uint64, 64))},
    **{f(): (-(2**bits), 2**bits) for f, bits in ((pa.float16, 11), (pa.float32, 24), (pa.float64, 53))},
}
"""Numeric type -> the range in which it holds every integer exactly."""
_WIDENING = sorted(_EXACT, key=lambda t: (pat.is_floating(t), t.bit_width, pat.is_unsigned_integer(t)))


def parse_type(spelled: str) -> pa.DataType:
    """The type that a config spells `int64`, `timestamp[us, UTC]`, `list<string>`. ValueError names those that are known."""
    spelled = spelled.strip()
    if match := _LIST.fullmatch(spelled):
        return pa.list_(parse_type(match[1]))
    if match := _ZONED.fullmatch(spelled):
        return pa.timestamp(match[1], match[2])
    if spelled in _NAMES:
        return pa.type_for_alias(spelled)
    raise ValueError(f"unknown type {spelled!r}; known are {', '.join(_NAMES)}, timestamp[us, UTC] and list<...> of these")


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold documents; binary is taken for UTF-8."""
    return (
        is_string(type_)
        or (pat.is_dictionary(type_) and is_string(type_.value_type))
        or _any(type_, pat.is_binary, pat.is_large_binary)
    )


def is_string(type_: pa.DataType) -> bool:
    """Whether values of this type are strings, whatever their layout."""
    return _any(type_, pat.is_string, pat.is_large_string, pat.is_string_view)


def is_number(type_: pa.DataType) -> bool:
    """Whether values are integers or floats."""
    return _any(type_, pat.is_integer, pat.is_floating)


def extension_name(field: pa.Field) -> str | None:
    """The extension type of a field or of one nested in it, whether Arrow knows it here or not; None where there is none."""
    named = (field.metadata or {}).get(b"ARROW:extension:name")
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    if named is not None:
        return str(named.decode(errors="replace"))
    inside = [field.type.field(i) for i in range(field.type.num_fields)] if pat.is_nested(field.type) else []
    if pat.is_dictionary(field.type):
        inside = [pa.field("", field.type.value_type)]
    return next((name for child in inside if (name := extension_name(child)) is not None), None)


def plain(type_: pa.DataType) -> pa.DataType:
    """The type a column is carried through as: layouts of strings become `string`, dictionaries their values, lists `list`.

    ValueError for types that cannot be carried through: extensions, unions and structs without fields."""
    if is_string(type_):
        return pa.string()
    if isinstance(type_, pa.BaseExtensionType):
        raise ValueError(f"extension type {type_.extension_name!r} cannot be kept")  # noqa: TRY004 -- not a wrong Python type
    if pat.is_dictionary(type_):
        return plain(type_.value_type)
    if _any(type_, pat.is_binary, pat.is_large_binary, pat.is_binary_view):
        return pa.binary()
    if _any(type_, pat.is_list, pat.is_large_list):
        return pa.list_(plain(type_.value_type))
    if pat.is_struct(type_) and type_.num_fields:
        return pa.struct([pa.field(f.name, plain(f.type)) for f in type_])
    if pat.is_nested(type_) and not _any(type_, pat.is_fixed_size_list, pat.is_map):
        raise ValueError(f"type {type_} cannot be kept")
    return type_


def without_nulls(type_: pa.DataType) -> pa.DataType:
    """`type_` with `string` wherever no value was seen: any other choice would be as arbitrary."""
    if pat.is_null(type_):
        return pa.string()
    if pat.is_list(type_):
        return pa.list_(without_nulls(type_.value_type))
    if pat.is_struct(type_):
        return pa.struct([pa.field(f.name, without_nulls(f.type)) for f in type_])
    return type_


def unify(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds each value of both exactly, or None. Both are `plain`."""
    if one == other or pat.is_null(other):
        return one
    if pat.is_null(one):
        return other
    return next((t for t in _WIDENING if _holds(t, one) and _holds(t, other)), None)


def convertible(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether values of `source` may fit `target`, each for itself: numbers among each other, and times as ISO 8601 text."""
    if source == target or pat.is_null(source) or (is_number(source) and is_number(target)):
        return True
    if pat.is_timestamp(source) and pat.is_timestamp(target):
        return (source.tz is None) == (target.tz is None)
    if pat.is_list(source) and pat.is_list(target):
        return convertible(source.value_type, target.value_type)
    return is_string(source) and _any(target, pat.is_timestamp, pat.is_date, pat.is_decimal)


def integer_range(type_: pa.DataType) -> tuple[int, int] | None:
    """Least and greatest value of an integer type."""
    return _EXACT[type_] if pat.is_integer(type_) else None


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    if wide not in _EXACT or narrow not in _EXACT or (pat.is_floating(narrow) and not pat.is_floating(wide)):
        return False
    (low, high), (least, most) = _EXACT[wide], _EXACT[narrow]
    return bool(low <= least and most <= high)


def _any(type_: pa.DataType, *tests: Callable[[pa.DataType], bool]) -> bool:
    return any(test(type_) for test in tests)
