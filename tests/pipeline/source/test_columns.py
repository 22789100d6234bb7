"""Columns to documents: pinned types, ids, and the reason of each row that is set aside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.schema import TEXT, documents_schema
from pipeline.ledger.pieces import Shard
from pipeline.quarantine import Entry
from pipeline.source.columns import Raw, ReadRecipe, can_be_id, cast_each, to_documents

SHARD = Shard("dir/a.parquet", "/root/dir/a.parquet", "v", 1)


def documents(
    columns: dict[str, Any], keep: dict[str, pa.DataType] | None = None, **recipe: Any
) -> tuple[list[dict[str, Any]], list[Entry]]:
    """Rows and entries of columns that start at row 10."""
    arrays = {name: c if isinstance(c, pa.Array) else pa.array(c) for name, c in columns.items()}
    rows = np.arange(10, 10 + len(next(iter(arrays.values()))))
    settings = {"text": "text", "id": None, "max_document": 100, "keep": pa.schema((keep or {}).items()), **recipe}
    table, entries = to_documents(
        Raw(rows, arrays), recipe.get("shard", SHARD), ReadRecipe(**{k: v for k, v in settings.items() if k != "shard"})
    )
    assert table.schema == documents_schema(settings["keep"])
    table.validate(full=True)
    return table.to_pylist(), entries


def broken(*values: bytes) -> pa.Array:
    """A string column with bytes that nobody checked."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())],
)
def test_every_layout_of_text(type_: pa.DataType) -> None:
    rows, entries = documents({"text": pa.array(["a", "", None, "grün 中文"]).cast(type_)})
    assert [r[TEXT] for r in rows] == ["a", "", "grün 中文"]
    assert [r["_row"] for r in rows] == [10, 11, 13]
    assert entries == [Entry(12, "dir/a.parquet#12", "null_text", "text is null or missing")]


def test_reasons_against_text() -> None:
    rows, entries = documents({"text": broken(b"good", b"\xff", b"x" * 101, b"\xed\xa0\x80", b"\xff" * 200)})
    assert [r[TEXT] for r in rows] == ["good"]
    assert [(e.row, e.reason) for e in entries] == [
        (11, "bad_encoding"),
        (12, "too_large"),
        (13, "bad_encoding"),
        (14, "too_large"),
    ]
    assert entries[1].detail == "text of 101 bytes; input.max_document is 100"


def test_a_limit_counts_bytes_not_characters() -> None:
    rows, entries = documents({"text": ["中" * 33, "中" * 34]})
    assert [len(r[TEXT]) for r in rows] == [33]
    assert [e.reason for e in entries] == ["too_large"]


def test_a_shard_without_text_or_with_numbers_for_text() -> None:
    _, entries = documents({"other": [1, 2]})
    assert [(e.row, e.reason) for e in entries] == [(10, "null_text"), (11, "null_text")]
    _, entries = documents({"text": [1.5, None]})
    assert [(e.reason, e.detail) for e in entries] == [("not_text", "text is double"), ("null_text", "text is null or missing")]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a", None, "b"], ["a", "dir/a.parquet#11", "b"]),
        ([1, None, -(2**63)], ["1", "dir/a.parquet#11", "-9223372036854775808"]),
        (pa.array([b"a", None, b""]), ["a", "dir/a.parquet#11", ""]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", "dir/a.parquet#11", "a"]),
    ],
)
def test_ids_become_strings_with_a_default(ids: Any, expected: list[str]) -> None:
    rows, entries = documents({"text": ["x", "y", None], "doc": ids}, id="doc")
    assert [*(r["id"] for r in rows), *(e.id for e in entries)] == expected


@pytest.mark.parametrize(
    "type_",
    [
        *(pa.string(), pa.string_view(), pa.large_binary(), pa.uint64(), pa.float16(), pa.bool_(), pa.null(), pa.date32()),
        *(pa.timestamp("us", "UTC"), pa.time64("ns"), pa.duration("s"), pa.decimal128(9, 2)),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.int64())),
    ],
)
def test_types_that_can_be_ids_are_read(type_: pa.DataType) -> None:
    assert can_be_id(type_)
    rows, entries = documents({"text": ["x"], "doc": pa.nulls(1, type_)}, id="doc")
    assert ([r["id"] for r in rows], entries) == (["dir/a.parquet#10"], [])


@pytest.mark.parametrize(
    "type_",
    [
        *(pa.list_(pa.int8()), pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8()), pa.binary(16), pa.binary_view()),
        *(pa.uuid(), pa.month_day_nano_interval(), pa.dictionary(pa.int8(), pa.binary())),
    ],
)
def test_types_that_cannot_be_ids(type_: pa.DataType) -> None:
    assert not can_be_id(type_)


def test_an_id_that_cannot_be_read_is_null_in_the_quarantine() -> None:
    rows, entries = documents({"text": ["x", "y", None], "doc": broken(b"\xff", b"fine", b"\xfe")}, id="doc")
    assert [r["id"] for r in rows] == ["fine"]
    assert [(e.row, e.id, e.reason) for e in entries] == [(10, None, "bad_encoding"), (12, None, "null_text")]


def test_kept_columns_have_exactly_their_pinned_types() -> None:
    columns = {
        "text": ["a", "b"],
        "n": pa.array([1, None], pa.int8()),
        "s": pa.array(["x", "y"], pa.large_string()),
        "t": ["2026-01-01", None],
    }
    keep = {"n": pa.float64(), "s": pa.string(), "t": pa.date32(), "missing": pa.list_(pa.int8()), "text": pa.string()}
    rows, entries = documents(columns, keep)
    assert not entries
    assert [list(r.values())[1:6] for r in rows] == [
        [1.0, "x", pa.scalar("2026-01-01").cast(pa.date32()).as_py(), None, "a"],
        [None, "y", None, None, "b"],
    ]


@pytest.mark.parametrize(
    ("column", "type_", "bad", "reason"),
    [
        ([1, 300, None, -1], pa.uint8(), [1, 3], "bad_value"),
        ([1.0, 1.5, float("nan"), None], pa.int64(), [1, 2], "bad_value"),
        ([2**53, 2**53 + 1, None, 0], pa.float64(), [1], "bad_value"),
        (["a", None, "b", "c"], pa.int64(), [0, 2, 3], "bad_value"),
        (["2026-01-01", "soon", None, "2026-02-31"], pa.timestamp("us"), [1, 3], "bad_value"),
        (broken(b"a", b"\xff", b"b", b"\xc3"), pa.string(), [1, 3], "bad_encoding"),
        (pa.ListArray.from_arrays([0, 1, 2, 3, 4], broken(b"a", b"\xff", b"b", b"c")), pa.list_(pa.string()), [1], "bad_value"),
    ],
)
def test_values_that_do_not_fit(column: Any, type_: pa.DataType, bad: list[int], reason: str) -> None:
    rows, entries = documents({"text": ["t"] * 4, "c": column, "doc": ["p", "q", "r", "s"]}, {"c": type_}, id="doc")
    assert [(e.row, e.id, e.reason) for e in entries] == [(10 + i, "pqrs"[i], reason) for i in bad]
    assert [r["_row"] for r in rows] == [10 + i for i in range(4) if i not in bad]


def test_a_partition_column_comes_from_the_path() -> None:
    shard = Shard("day=5/lang=zh/a.jsonl", "/in/day=5/lang=zh/a.jsonl", "v", 1)
    rows, _ = documents({"text": ["a"], "lang": ["en"]}, {"lang": pa.string(), "day": pa.int8()}, shard=shard)
    assert [(r["lang"], r["day"]) for r in rows] == [("zh", 5)]
    rows, entries = documents({"text": ["a", "b"]}, {"lang": pa.int8()}, shard=shard)
    assert not rows
    assert [e.reason for e in entries] == ["bad_value", "bad_value"]


def test_details_never_hold_content() -> None:
    secret = b"\xffSECRET"
    columns = {"text": broken(secret, b"SECRET" * 50, b"fine"), "n": ["SECRET"] * 3, "doc": broken(b"1", b"2", b"3")}
    _, entries = documents(columns, {"n": pa.int64()}, id="doc")
    assert len(entries) == 3
    assert "SECRET" not in repr(entries)


@given(st.lists(st.integers(-300, 300)), st.sampled_from([pa.int8(), pa.uint8()]))
def test_cast_each_finds_exactly_the_rows_that_do_not_fit(values: list[int], type_: pa.DataType) -> None:
    low, high = (-128, 127) if type_ == pa.int8() else (0, 255)
    column, bad = cast_each(pa.array(values, pa.int64()), lambda part: part.cast(type_), type_)
    assert column.type == type_
    assert bad.tolist() == [not low <= v <= high for v in values]
    assert column.to_pylist() == [v if low <= v <= high else None for v in values]
