"""Files of gold: what names them, how they are read, and how their rows meet those of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.gold import GoldFile, join, read


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gold(keys: list[Any], values: list[Any]) -> GoldFile:
    return GoldFile(pa.array(keys), pa.array(values))


def test_parquet_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "topic": "x", "n": 1}, {"id": "b", "topic": None, "n": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gold.parquet")
    jsonl(tmp_path / "gold.jsonl", rows)
    for name in ("gold.parquet", "gold.jsonl"):
        file = read(f"{tmp_path / name}:topic", "id", {}, "out")
        assert (file.keys.to_pylist(), file.values.to_pylist()) == (["a", "b"], ["x", None])


def test_the_only_column_beside_the_key_needs_no_name(tmp_path: Path) -> None:
    file = read(jsonl(tmp_path / "gold.jsonl", [{"gold": ["x"], "doc": 7}]), "doc", {}, "out")
    assert (file.keys.to_pylist(), file.values.to_pylist()) == ([7], [["x"]])


def test_strings_that_look_like_times_stay_strings(tmp_path: Path) -> None:
    row = {"id": "2026-11-20", "gold": ["2026-11-21"], "spans": [{"label": "2026-11-22"}]}
    where = jsonl(tmp_path / "gold.jsonl", [row])
    for column in ("gold", "spans"):
        file = read(f"{where}:{column}", "id", {}, "out")
        assert (file.keys.to_pylist(), file.values.to_pylist()) == (["2026-11-20"], [row[column]])


def test_dictionaries_and_large_strings_become_plain(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(["a"], pa.large_string()), "gold": pa.array(["x"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "gold.parquet")
    file = read(str(tmp_path / "gold.parquet"), "id", {}, "out")
    assert file.keys.type == file.values.type == pa.string()


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ('{"doc": 1, "gold": "x"}', "", "--on: the file has no column 'id' to join on; it has doc, gold"),
        ('{"id": 1, "a": "x", "b": "x"}', "", "add :COLUMN, one of a, b"),
        ('{"id": 1}', "", "add :COLUMN, one of none"),
        ('{"id": 1, "a": "x"}', ":b", "no column 'b'; it has id, a"),
        ('{"id": 1, "a": "x"}\n{"id": 2, "a": 5}', "", "one type for each column: .*changed from string to number"),
        ('{"id": 1, "a": ', "", "is not jsonl"),
        ("", "", "is not jsonl"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, content: str, column: str, message: str) -> None:
    (tmp_path / "gold.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(f"{tmp_path / 'gold.jsonl'}{column}", "id", {}, "out")


def test_text_that_is_not_utf8_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_bytes(b'{"id": "a", "gold": "secret \xff"}\n')
    with pytest.raises(ConfigError, match="is not jsonl") as caught:
        read(str(tmp_path / "gold.jsonl"), "id", {}, "out")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("topic", "neither a column of the table nor a FILE"),
        ("nowhere.parquet:x", "no file 'nowhere.parquet'"),
        ("s3://user:hunter2@bucket/gold.parquet", "carries credentials"),
        ("s3://user:hunter2@bucket/gold.csv", "neither a column of the table nor a FILE"),
        ("ftp://host/gold.jsonl", "protocol 'ftp' is not allowed"),
    ],
)
def test_what_names_no_file_is_refused(where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(where, "id", {}, "out")
    assert "hunter2" not in str(caught.value)


def test_gold_lies_in_a_store_of_its_own_or_in_that_of_the_table(s3_url: Any, s3_server: Any) -> None:
    import s3fs

    url = s3_url()
    s3fs.S3FileSystem(**s3_server.storage_options).pipe_file(f"{url}/gold.jsonl", b'{"id": "a", "gold": "x"}\n')
    assert read(f"{url}/gold.jsonl:gold", "id", s3_server.storage_options, url).values.to_pylist() == ["x"]


def test_rows_meet_by_their_keys() -> None:
    met = join(pa.array(["c", "a", "x", "a", None]), gold(["a", "b", "c", None], [1, 2, None, 4]), "id")
    assert met.values.to_pylist() == [None, 1, None, 1, None]
    assert met.met.tolist() == [True, True, False, True, False]
    assert met.alone == 2


def test_numbers_meet_the_strings_that_ids_are() -> None:
    assert join(pa.array(["7", "8"]), gold([8, 7], ["x", "y"]), "id").values.to_pylist() == ["y", "x"]


def test_keys_that_cannot_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match="--on: 1 rows of the file repeat the 'id' of another"):
        join(pa.array(["a"]), gold(["a", "a"], [1, 2]), "id")
    with pytest.raises(ConfigError, match="the 2 rows of the table and the 1 rows of gold do not meet"):
        join(pa.array(["a", "b"]), gold(["c"], [1]), "id")
    with pytest.raises(ConfigError, match="'n' of the file is string, that of the table int64"):
        join(pa.array([1]), gold(["x"], [1]), "n")
