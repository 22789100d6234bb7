"""Gold for a committed table: read from a Parquet or JSONL file, and put beside the rows of the table by a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
import pyarrow.types as pat

from pipeline.errors import ConfigError
from pipeline.source.storage import filesystem
from pipeline.source.types import plain
from pipeline.urls import check_url, protocol

_FILE = re.compile(r"(?P<url>.+\.(?P<format>parquet|jsonl))(?::(?P<column>[^/]+))?", re.DOTALL)
_LARGEST = 64 * 2**20
"""Bytes of a line of JSON, at most."""


@dataclass(frozen=True)
class GoldFile:
    """The rows of a file of gold, keys and values of the same length."""

    keys: pa.Array
    values: pa.Array


@dataclass(frozen=True)
class Gold:
    """Gold for each row of a table."""

    values: pa.Array
    met: npt.NDArray[np.bool_]
    """Rows for which there is gold, be it null."""
    alone: int = 0
    """Gold for which there is no row."""


def read(where: str, on: str, storage_options: Mapping[str, Any], output: str) -> GoldFile:
    """`FILE.parquet` or `FILE.jsonl`, with `:COLUMN` where it has more than one column beside the key `on`.

    The options are those of the store of `output`, and reach the file if it lies in a store of that kind. ConfigError where
    there is no such file or column, and where it cannot be read."""
    match = _FILE.fullmatch(where)
    if match is None:
        raise _error("names neither a column of the table nor a FILE.parquet or FILE.jsonl")
    try:
        check_url(match["url"])
    except ValueError as error:
        raise _error(str(error)) from error
    options = storage_options if protocol(match["url"]) == protocol(output) else {}
    load = _parquet if match["format"] == "parquet" else _jsonl
    try:
        fs, path = filesystem(match["url"], options)
        with fs.open(path, "rb") as file:
            return load(file, lambda names: _columns(names, on, match["column"]))
    except ConfigError:
        raise
    except FileNotFoundError:
        raise _error(f"there is no file {match['url']!r}") from None
    except (pa.ArrowException, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise _error(f"{match['url']!r} is not {match['format']} with one type for each column: {first[:200]}") from error
    except Exception as error:  # each store's library raises its own
        raise _error(f"cannot read {match['url']!r}: {type(error).__name__}; check path and credentials") from error


def join(keys: pa.Array, file: GoldFile, on: str) -> Gold:
    """The gold of each row of the table by its key; several rows may share one. ConfigError where keys do not meet at all."""
    try:
        theirs = file.keys.cast(keys.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _error(f"{on!r} of the file is {file.keys.type}, that of the table {keys.type}", "--on") from error
    repeated = len(theirs) - theirs.null_count - pc.count_distinct(theirs).as_py()
    if repeated:
        raise _error(f"{repeated} rows of the file repeat the {on!r} of another; one row of gold for each", "--on")
    index = pc.index_in(keys, theirs.drop_null())
    met = index.is_valid().to_numpy(zero_copy_only=False)
    if not met.any():
        raise _error(
            f"the {len(keys)} rows of the table and the {len(theirs)} rows of gold do not meet: none has a partner by {on!r}",
            "--on",
        )
    return Gold(file.values.filter(theirs.is_valid()).take(index), met, len(theirs) - pc.count_distinct(index).as_py())


_Choose = Callable[[list[str]], tuple[str, str]]


def _parquet(file: BinaryIO, choose: _Choose) -> GoldFile:
    parquet = pq.ParquetFile(file, pre_buffer=False)
    names = choose(parquet.schema_arrow.names)
    # Read in this thread alone: Arrow's own threads may still hold a Python file while the interpreter goes down.
    return _gold_file(parquet.read(columns=list(dict.fromkeys(names)), use_threads=False), *names)


def _jsonl(file: BinaryIO, choose: _Choose) -> GoldFile:
    data = pa.py_buffer(file.read())

    def parse(types: dict[str, pa.DataType]) -> pa.Table:
        options = pj.ParseOptions(explicit_schema=pa.schema(types.items()))
        return pj.read_json(pa.BufferReader(data), pj.ReadOptions(block_size=_LARGEST), options)

    table = parse({})
    # Strings that look like times were read as times.
    strings = {f.name: _untimed(f.type) for f in table.schema if _untimed(f.type) != f.type}
    if strings:
        table = parse(strings)
    return _gold_file(table, *choose(table.column_names))


def _untimed(type_: pa.DataType) -> pa.DataType:
    if pat.is_list(type_):
        return pa.list_(_untimed(type_.value_type))
    if pat.is_struct(type_):
        return pa.struct([pa.field(f.name, _untimed(f.type)) for f in type_])
    return pa.string() if pat.is_timestamp(type_) else type_


def _gold_file(table: pa.Table, key: str, value: str) -> GoldFile:
    columns = [table[name].cast(plain(table[name].type)).combine_chunks() for name in (key, value)]
    for column in columns:
        column.validate(full=True)  # JSON may hold strings that are not UTF-8
    return GoldFile(*columns)


def _columns(names: list[str], on: str, column: str | None) -> tuple[str, str]:
    """The names of the key and of the gold."""
    if on not in names:
        raise _error(f"the file has no column {on!r} to join on; it has {', '.join(names)}", "--on")
    others = [name for name in names if name != on]
    if column is None and len(others) != 1:
        raise _error(f"which column is gold? add :COLUMN, one of {', '.join(others) or 'none'}")
    if column is not None and column not in names:
        raise _error(f"the file has no column {column!r}; it has {', '.join(names)}")
    return on, column or others[0]


def _error(message: str, field: str = "--gold") -> ConfigError:
    return ConfigError(message, field=field)
