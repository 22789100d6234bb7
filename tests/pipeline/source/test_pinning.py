"""Columns at planning: what is missing or contradicts itself ends there, and kept columns get their types."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.sections import Input
from pipeline.source.listing import list_shards
from pipeline.source.planning import Pins, SourcePlan, plan_source

Plan = Callable[..., SourcePlan]


def parquet(folder: Path, name: str, **columns: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    columns = {"text": ["a"] * len(next(iter(columns.values()), [1])), **columns}
    pq.write_table(pa.table(columns), folder / name)


def jsonl(folder: Path, name: str, *rows: object) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def refused(plan: Plan, field: str, message: str, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        plan(**settings)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("one", "other", "pinned"),
    [
        (pa.int32(), pa.float64(), pa.float64()),
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.string(), pa.large_string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string()),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.null(), pa.null(), pa.string()),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
    ],
)
def test_parquet_types_become_one(tmp_path: Path, plan: Plan, one: pa.DataType, other: pa.DataType, pinned: pa.DataType) -> None:
    for name, type_ in (("a.parquet", one), ("b.parquet", other)):
        parquet(tmp_path, name, c=pa.nulls(1, type_))
    parquet(tmp_path, "c.parquet")
    assert plan(path=str(tmp_path), keep=["c"]).keep == pa.schema([("c", pinned)])


@pytest.mark.parametrize(
    ("one", "other"), [(pa.int64(), pa.float64()), (pa.string(), pa.int8()), (pa.timestamp("us"), pa.timestamp("ms"))]
)
def test_a_real_conflict_names_both_shards_and_the_column(
    tmp_path: Path, plan: Plan, one: pa.DataType, other: pa.DataType
) -> None:
    parquet(tmp_path, "a.parquet", c=pa.nulls(1, one))
    parquet(tmp_path, "b.parquet", c=pa.nulls(1, other))
    pattern = rf"'c' is {one} in shard a\.parquet but {other} in shard b\.parquet".replace("[", r"\[").replace("]", r"\]")
    refused(plan, "input.keep", pattern, path=str(tmp_path), keep=["c"])


def test_a_spelled_type_wins_over_conflicts_and_over_the_table(tmp_path: Path, plan: Plan) -> None:
    parquet(tmp_path, "a.parquet", c=pa.array([1], pa.int64()))
    parquet(tmp_path, "b.parquet", c=pa.array([1.5], pa.float64()))
    assert plan(path=str(tmp_path), keep={"c": "float32"}).keep.types == [pa.float32()]
    refused(
        plan,
        "input.keep",
        r"'c' is int64 in shard a\.parquet, which cannot become string",
        path=str(tmp_path),
        keep={"c": "string"},
    )


def test_the_committed_table_wins_over_what_is_found(tmp_path: Path) -> None:
    parquet(tmp_path, "a.parquet", c=pa.array([1.5]))
    settings = Input(path=str(tmp_path), keep=["c", "gone"])
    pins = Pins(schema=pa.schema([("c", pa.int8()), ("gone", pa.date32()), ("other", pa.int8())]))
    assert plan_source(settings, list_shards(settings, "/x"), pins, {}).keep == pa.schema(
        [("c", pa.int8()), ("gone", pa.date32())]
    )


def test_json_types_come_from_a_sample(tmp_path: Path, plan: Plan) -> None:
    row = {"text": "a", "i": 1, "f": 1, "b": True, "s": "2026-01-01", "n": None, "l": [], "o": {"a": 1}}
    jsonl(tmp_path, "a.jsonl", row, {"text": "b", "f": 2.5, "o": {"b": None}}, "not json")
    jsonl(tmp_path, "b.jsonl.gz", {"text": "c", "l": ["x"], "i": None})
    expected = {
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "s": pa.string(),
        "n": pa.string(),
        "l": pa.list_(pa.string()),
        "o": pa.struct([("a", pa.int64()), ("b", pa.string())]),
    }
    assert plan(path=str(tmp_path), keep=list(expected)).keep == pa.schema(expected.items())


def test_a_few_wrong_json_values_are_for_the_quarantine_not_for_the_plan(tmp_path: Path, plan: Plan) -> None:
    jsonl(tmp_path, "a.jsonl", *({"text": "a", "stars": stars} for stars in (1, "five", 3, None)))
    assert plan(path=str(tmp_path), keep=["stars"]).keep.types == [pa.int64()]


def test_json_shards_that_contradict_each_other_or_parquet(tmp_path: Path, plan: Plan) -> None:
    jsonl(tmp_path / "one", "a.jsonl", {"text": "a", "c": 1})
    jsonl(tmp_path / "one", "b.jsonl", {"text": "a", "c": "x"})
    refused(
        plan, "input.keep", r"'c' is float in shard a\.jsonl but str in shard b\.jsonl", path=str(tmp_path / "one"), keep=["c"]
    )
    parquet(tmp_path / "two", "a.parquet", c=["x"])
    jsonl(tmp_path / "two", "b.jsonl", {"text": "a", "c": 1})
    refused(
        plan,
        "input.keep",
        r"'c' is string in shard a\.parquet but int64 in shard b\.jsonl",
        path=str(tmp_path / "two"),
        keep=["c"],
    )
    jsonl(tmp_path / "three", "a.jsonl", {"text": "a", "c": [1, "x"]})
    refused(plan, "input.keep", r"'c': its JSON values have no common type; spell one", path=str(tmp_path / "three"), keep=["c"])
    jsonl(tmp_path / "four", "a.jsonl", {"text": "a", "c": 2**70})
    refused(plan, "input.keep", "spell one", path=str(tmp_path / "four"), keep=["c"])
    assert plan(path=str(tmp_path / "four"), keep={"c": "float64"}).keep.types == [pa.float64()]


@pytest.mark.parametrize(
    ("type_", "value", "pinned"),
    [(pa.int32(), 1, pa.int64()), (pa.float64(), 1, pa.float64()), (pa.timestamp("us"), "2026-01-01", pa.timestamp("us"))],
)
def test_json_follows_parquet(tmp_path: Path, plan: Plan, type_: pa.DataType, value: object, pinned: pa.DataType) -> None:
    parquet(tmp_path, "a.parquet", c=pa.nulls(1, type_))
    jsonl(tmp_path, "b.jsonl", {"text": "a", "c": value})
    assert plan(path=str(tmp_path), keep=["c"]).keep.types == [pinned]


def test_partition_columns_are_strings_unless_spelled(tmp_path: Path, plan: Plan) -> None:
    parquet(tmp_path, "day=5/lang=zh/a.parquet")
    jsonl(tmp_path, "day=6/lang=en/b.jsonl", {"text": "a"})
    assert plan(path=str(tmp_path), keep={"day": None, "lang": None}).keep == pa.schema(
        [("day", pa.string()), ("lang", pa.string())]
    )
    assert plan(path=str(tmp_path), keep={"day": "int16"}).keep.types == [pa.int16()]


def test_a_kept_column_in_no_shard(tmp_path: Path, plan: Plan) -> None:
    parquet(tmp_path, "a.parquet", language=["x"])
    refused(
        plan, "input.keep", r"no shard has a column 'languge'; did you mean 'language'\?", path=str(tmp_path), keep=["languge"]
    )
    refused(plan, "input.keep", "no shard has a column 'x'", path=str(tmp_path), keep={"x": "string"})
    jsonl(tmp_path, "b.jsonl", {"text": "a"})
    refused(plan, "input.keep", "if it appears later on in JSONL shards, spell its type", path=str(tmp_path), keep=["rare"])
    assert plan(path=str(tmp_path), keep={"rare": "string"}).keep.types == [pa.string()]


def test_extension_types_are_refused(tmp_path: Path, plan: Plan) -> None:
    parquet(tmp_path, "a.parquet", u=pa.array([b"0123456789abcdef"], pa.uuid()))
    refused(plan, "input.keep", r"'u' is of extension type 'arrow\.uuid' in shard a\.parquet", path=str(tmp_path), keep=["u"])


def test_a_text_column_that_no_shard_has(tmp_path: Path, plan: Plan) -> None:
    parquet(tmp_path, "a.parquet", content=["x"])
    jsonl(tmp_path, "b.jsonl", {"text": "a", "title": "b"})
    assert plan(path=str(tmp_path)).spans
    pattern = r"no shard has a column 'contents'; did you mean 'content'\?; there are: 'content', 'text', 'title'"
    refused(plan, "input.text", pattern, path=str(tmp_path), text="contents")
    refused(plan, "input.id", r"no shard has a column 'titel'; did you mean 'title'\?", path=str(tmp_path), id="titel")
    assert plan(path=str(tmp_path), id="title").spans


@pytest.mark.parametrize("values", [[1, 2], [1.5, None], [["a"]], [True]])
def test_a_text_column_that_holds_no_text(tmp_path: Path, plan: Plan, values: list[Any]) -> None:
    parquet(tmp_path / "p", "a.parquet", text=values)
    jsonl(tmp_path / "j", "a.jsonl", *({"text": v} for v in values))
    for folder in "pj":
        refused(plan, "input.text", "'text' holds no text in any shard but", path=str(tmp_path / folder))
    parquet(tmp_path / "p", "b.parquet", text=["some"])
    jsonl(tmp_path / "j", "b.jsonl", {"text": "some"})
    for folder in "pj":
        assert plan(path=str(tmp_path / folder)).spans


def test_what_cannot_be_known_is_no_error(tmp_path: Path, plan: Plan) -> None:
    jsonl(tmp_path / "null", "a.jsonl", {"text": None})
    parquet(tmp_path / "null", "b.parquet", text=[None])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.parquet").write_bytes(b"nothing")
    (tmp_path / "bad" / "b.jsonl.gz").write_bytes(b"nothing")
    (tmp_path / "bad" / "c.jsonl").touch()
    assert plan(path=str(tmp_path / "null")).spans
    assert plan(path=str(tmp_path / "bad"), keep=["c"], id="d").keep == pa.schema([("c", pa.string())])


@pytest.mark.parametrize("type_", [pa.list_(pa.int8()), pa.struct([("a", pa.int8())]), pa.binary(16)])
def test_an_id_column_that_cannot_be_one(tmp_path: Path, plan: Plan, type_: pa.DataType) -> None:
    parquet(tmp_path, "a.parquet", doc=["a"])
    parquet(tmp_path, "b.parquet", doc=pa.nulls(1, type_))
    refused(plan, "input.id", r"column 'doc' is .* in shard b\.parquet", path=str(tmp_path), id="doc")


def test_an_id_that_is_kept_as_a_list(tmp_path: Path, plan: Plan) -> None:
    jsonl(tmp_path, "a.jsonl", {"text": "a", "doc": ["x"]})
    refused(plan, "input.id", "column 'doc' is list<.*> in input.keep", path=str(tmp_path), id="doc", keep=["doc"])


@pytest.mark.parametrize(("name", "field"), [("text", "input.text"), ("doc", "input.id"), ("lang", "input.keep")])
def test_two_columns_of_one_wanted_name(tmp_path: Path, plan: Plan, name: str, field: str) -> None:
    parquet(tmp_path, "a.parquet", doc=["a"], lang=["en"])
    names = ["text", "doc", "lang", "other", "other", name]
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 6, names=names), tmp_path / "b.parquet")
    message = rf"shard b\.parquet has more than one column '{name}'"
    refused(plan, field, message, path=str(tmp_path), id="doc", keep=["lang"])
