"""Types of kept columns: spelling, agreement between shards, and what can be carried through."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.source.types import convertible, integer_range, is_text, parse_type, plain, unify, without_nulls

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
NUMBERS = [*INTEGERS, pa.float16(), pa.float32(), pa.float64()]


@pytest.mark.parametrize(
    ("spelled", "type_"),
    [
        ("string", pa.string()),
        ("int64", pa.int64()),
        (" double ", pa.float64()),
        ("date32", pa.date32()),
        ("timestamp[us]", pa.timestamp("us")),
        ("timestamp[us, UTC]", pa.timestamp("us", "UTC")),
        ("timestamp[ms, tz=Europe/Berlin]", pa.timestamp("ms", "Europe/Berlin")),
        ("list<string>", pa.list_(pa.string())),
        ("list<item: list<int8>>", pa.list_(pa.list_(pa.int8()))),
    ],
)
def test_parse_type(spelled: str, type_: pa.DataType) -> None:
    assert parse_type(spelled) == type_


@pytest.mark.parametrize(
    "type_", [*NUMBERS, pa.string(), pa.bool_(), pa.timestamp("ns", "UTC"), pa.list_(pa.float32()), pa.binary()]
)
def test_what_arrow_prints_can_be_spelled(type_: pa.DataType) -> None:
    assert parse_type(str(type_).replace("halffloat", "float16")) == type_


@pytest.mark.parametrize("spelled", ["strin", "", "list<>", "list<oops>", "timestamp[h]", "decimal(3, 2)", "list<string"])
def test_unknown_spelling_names_the_known_ones(spelled: str) -> None:
    with pytest.raises(ValueError, match=r"known are string, .*list<\.\.\.>"):
        parse_type(spelled)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.int32(), pa.float64(), pa.float64()),
        (pa.int64(), pa.float64(), None),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.uint32(), pa.int32(), pa.int64()),
        (pa.uint64(), pa.int8(), None),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.null(), pa.string(), pa.string()),
        (pa.string(), pa.int8(), None),
        (pa.timestamp("us"), pa.timestamp("ms"), None),
    ],
)
def test_unify(one: pa.DataType, other: pa.DataType, both: pa.DataType | None) -> None:
    assert unify(one, other) == unify(other, one) == both


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
def test_a_unified_type_holds_every_value_of_both_exactly(one: pa.DataType, other: pa.DataType, data: st.DataObject) -> None:
    both = unify(one, other)
    for type_ in (one, other):
        span = integer_range(type_)
        if both is None or span is None:
            continue
        value = data.draw(st.integers(*span))
        assert int(pa.scalar(value, type_).cast(both).as_py()) == value


@pytest.mark.parametrize(
    ("type_", "carried"),
    [
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.int64()), pa.int64()),
        (pa.large_list(pa.large_string()), pa.list_(pa.string())),
        (pa.struct([("a", pa.string_view())]), pa.struct([("a", pa.string())])),
        (pa.large_binary(), pa.binary()),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
        (pa.decimal128(5, 2), pa.decimal128(5, 2)),
    ],
)
def test_plain(type_: pa.DataType, carried: pa.DataType) -> None:
    assert plain(type_) == carried


@pytest.mark.parametrize("type_", [pa.uuid(), pa.list_(pa.uuid()), pa.struct([]), pa.dense_union([pa.field("a", pa.int8())])])
def test_what_cannot_be_kept_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        plain(type_)


def test_nothing_seen_becomes_string() -> None:
    assert without_nulls(pa.null()) == pa.string()
    assert without_nulls(pa.struct([("a", pa.list_(pa.null()))])) == pa.struct([("a", pa.list_(pa.string()))])


def test_text() -> None:
    texts = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.large_binary(),
    ]
    assert all(map(is_text, texts))
    assert not any(map(is_text, [*NUMBERS, pa.bool_(), pa.list_(pa.string()), pa.dictionary(pa.int8(), pa.int8()), pa.null()]))


def test_convertible() -> None:
    assert convertible(pa.int64(), pa.int8())
    assert convertible(pa.float64(), pa.int64())
    assert convertible(pa.string(), pa.timestamp("us"))
    assert convertible(pa.list_(pa.int64()), pa.list_(pa.float32()))
    assert not convertible(pa.int64(), pa.string())
    assert not convertible(pa.string(), pa.int64())
    assert not convertible(pa.timestamp("us"), pa.timestamp("us", "UTC"))
    assert not convertible(pa.bool_(), pa.int8())
