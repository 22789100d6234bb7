"""JSON lines to columns. What the standard library's `json` says of a line is the truth; Arrow's reader says the same, faster.

Whole blocks go through `pyarrow.json`. A block that it refuses is halved, down to a few lines, and those are read by `json`
one by one: the reason of a bad line is found there, and a good one is written anew in a plain form that Arrow converts. So
every value is converted to its column's type by the same code, whichever way it came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.types as pat

from pipeline.errors import ConfigError
from pipeline.quarantine import Entry
from pipeline.source.columns import Raw, ReadRecipe
from pipeline.source.jsonl import Lines
from pipeline.source.types import integer_range

_FEW = 256
"""Lines that are read one by one once a block of them was refused: a refusal by Arrow costs as much as some hundred lines."""
_LARGEST = 64 * 2**20
"""Bytes that Arrow is given at once, at most (its block size is a 32-bit number)."""
_LONGEST_INTEGER = 4000
"""Digits; the standard library refuses more than 4300, since converting them takes quadratic time."""
_KINDS = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}

_FITTING: list[tuple[Callable[[pa.DataType], bool], set[type]]] = [
    (pat.is_string, {str}),
    (pat.is_timestamp, {str}),
    (pat.is_date, {str}),
    (pat.is_integer, {int}),
    (pat.is_floating, {int, float}),
    (pat.is_boolean, {bool}),
    (pat.is_list, {list}),
    (pat.is_struct, {dict}),
]
"""What a column's type takes from JSON; types that are not named here are left to Arrow."""


@dataclass(frozen=True)
class _Line:
    """One line as `json` reads it: `plain`, the same values for Arrow to convert, or why it is no document."""

    plain: str | None
    id: str | None
    reason: str = ""
    detail: str = ""


class Parser:
    """Reads the lines of one shard."""

    def __init__(self, recipe: ReadRecipe, shard_key: str) -> None:
        self._recipe = recipe
        self._shard_key = shard_key
        self._decoder = json.JSONDecoder(parse_int=_integer)
        types = {field.name: _read_as(field.type) for field in recipe.keep}
        types[recipe.text] = pa.string()
        id_types: list[pa.DataType | None] = [None]
        if recipe.id is not None and recipe.id not in types:
            id_types = [pa.string(), pa.int64(), pa.uint64()]
        self._rewrite_id = len(id_types) > 1
        self._schemas = [pa.schema({**types, **({recipe.id: t} if t else {})}.items()) for t in id_types]

    def parse(self, lines: Lines) -> tuple[list[Raw], list[Entry]]:
        """Columns of the lines that are JSON objects with a string or nothing for text, and an entry for each other line."""
        raws: list[Raw] = []
        limit = line_limit(self._recipe.max_document)
        entries = (
            [
                Entry(
                    row,
                    None,
                    "too_large",
                    f"line of {size} bytes; with input.max_document {self._recipe.max_document} the limit is {limit}",
                )
                for row, size in zip(lines.rows.tolist(), lines.sizes.tolist(), strict=True)
                if size > limit
            ]
            if (lines.sizes > limit).any()
            else []
        )
        self._parse(lines[lines.sizes <= limit], raws, entries)
        return raws, entries

    def _parse(self, lines: Lines, raws: list[Raw], entries: list[Entry]) -> None:
        columns = self._columns(lines) if len(lines) else {}
        if columns:
            raws.append(Raw(lines.rows, columns))
        elif len(lines) > _FEW:
            half = len(lines) // 2
            self._parse(lines[:half], raws, entries)
            self._parse(lines[half:], raws, entries)
        elif len(lines):
            self._parse_few(lines, raws, entries)

    def _columns(self, lines: Lines) -> dict[str, pa.Array] | None:
        """The lines by Arrow alone, or None where it may not see what `json` sees."""
        start, stop = int(lines.starts[0]), int(lines.stops[-1])
        content = np.frombuffer(lines.data, np.uint8)
        braces = (content[lines.starts] == ord("{")).all() and (content[lines.stops - 1] == ord("}")).all()
        # Objects cannot go on over lines that start and end with braces: `} {` is nowhere valid inside of one. A block that
        # starts with `null` kills Arrow's reader, and a NUL ends the text for some of its versions.
        if not braces or stop - start > _LARGEST or lines.data.find(b"\0", start, stop) >= 0:
            return None
        part = memoryview(lines.data)[start:stop]
        try:
            str(part, "utf-8")
        except UnicodeDecodeError:
            return None
        return self._read(part, len(lines))

    def _read(self, text: bytes | memoryview, n_lines: int) -> dict[str, pa.Array] | None:
        """`n_lines` objects by Arrow, ids as strings or else as integers; None where it refuses them or sees another number."""
        whole = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
        for schema in self._schemas:
            options = pj.ParseOptions(explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="ignore")
            try:
                table = pj.read_json(pa.BufferReader(text), whole, options)
            except pa.ArrowInvalid:
                continue
            if table.num_rows == n_lines:
                return {name: table[name].combine_chunks() for name in schema.names}
        return None

    def _parse_few(self, lines: Lines, raws: list[Raw], entries: list[Entry]) -> None:
        """Line by line with `json`; what it can read is then converted by Arrow."""
        good: list[tuple[int, str | None, bytes]] = []
        for row, start, stop in zip(lines.rows.tolist(), lines.starts.tolist(), lines.stops.tolist(), strict=True):
            line = self._line(lines.data[start:stop], row)
            if line.plain is None:
                entries.append(Entry(row, line.id, line.reason, line.detail))
            else:
                good.append((row, line.id, line.plain.encode()))
        columns = self._read(b"\n".join(plain for *_, plain in good), len(good)) if good else {}
        if columns:
            raws.append(Raw(np.array([row for row, *_ in good]), columns))
            return
        for row, id_, plain in good:
            columns = self._read(plain, 1)
            if columns:
                raws.append(Raw(np.array([row]), columns))
            else:
                entries.append(Entry(row, id_, "bad_value", "a kept column does not fit its type"))

    def _line(self, line: bytes, row: int) -> _Line:
        about = f"line of {len(line)} bytes"
        try:
            value = self._decoder.decode(line.decode())
        except UnicodeDecodeError as error:
            return _Line(None, None, "bad_encoding", f"{about} is not UTF-8: {error.reason} at byte {error.start}")
        except json.JSONDecodeError as error:
            return _Line(None, None, "bad_json", f"{about}: {error.msg} at column {error.colno}")
        except RecursionError:
            # Arrow's parser has no such limit, and would have taken the line in a block of good ones.
            deep = self._read(line, 1)
            return _Line(line.decode() if deep else None, None, "bad_json", f"{about}: nested too deeply")
        if not isinstance(value, dict):
            return _Line(None, None, "bad_json", f"{about} holds {_KINDS[type(value)]}, not object")
        id_ = self._id(value, row)
        text = value.get(self._recipe.text)
        if text is not None and not isinstance(text, str):
            return _Line(None, _encodable(id_), "not_text", f"text is {_KINDS[type(text)]}")
        wanted = {name: value[name] for name in self._recipe.columns if name in value}
        for field in self._recipe.keep:
            misfit = _misfit(wanted.get(field.name), field.type)
            if misfit:
                return _Line(None, _encodable(id_), "bad_value", f"column {field.name!r} is {misfit}, not {field.type}")
        if self._rewrite_id and wanted.get(self._recipe.id or "") is not None:
            wanted[self._recipe.id or ""] = id_
        plain = json.dumps(wanted, ensure_ascii=False)
        if _encodable(plain) is None:
            return _Line(None, _encodable(id_), "bad_encoding", f"{about} holds half of a surrogate pair")
        return _Line(plain, id_)

    def _id(self, value: Mapping[str, Any], row: int) -> str:
        own = value.get(self._recipe.id) if self._recipe.id is not None else None
        if own is None:
            return f"{self._shard_key}#{row}"
        return own if isinstance(own, str) else json.dumps(own)


def _misfit(value: object, type_: pa.DataType) -> str | None:
    """What `value` is, if it is plain to see that Arrow would not convert it to `type_`."""
    kinds = next((kinds for test, kinds in _FITTING if test(type_)), None)
    if value is None or kinds is None:
        return None
    if type(value) not in kinds:
        return _KINDS[type(value)]
    low_high = integer_range(type_)
    return "a number out of range" if low_high and not low_high[0] <= value <= low_high[1] else None  # type: ignore[operator]


def line_limit(max_document: int) -> int:
    """Bytes of the longest line that is read: every character of a document may be escaped, beside other fields."""
    return 8 * max_document + 2**20


def check_readable(keep: pa.Schema) -> None:
    """ConfigError (input.keep) for a column whose type cannot be read from JSON."""
    for field in keep:
        try:
            schema = pa.schema([(field.name, _read_as(field.type))])
            pj.read_json(pa.BufferReader(b"{}"), parse_options=pj.ParseOptions(explicit_schema=schema))
        except pa.ArrowNotImplementedError as error:
            raise ConfigError(
                f"column {field.name!r} is {field.type}, which JSONL shards cannot hold", field="input.keep"
            ) from error


def _read_as(type_: pa.DataType) -> pa.DataType:
    """The type to ask Arrow's JSON reader for; `pipeline.source.columns` casts where it differs."""
    if pat.is_date(type_):
        return pa.string()  # it would want days since 1970
    return pa.float64() if pat.is_float16(type_) else type_


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _encodable(text: str) -> str | None:
    """`text`, or None if it holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text
