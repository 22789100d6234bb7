"""JSON lines: blocks, halves and single lines agree with a plain loop over `json.loads`."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from operators.schema import TEXT
from pipeline.errors import ConfigError
from pipeline.ledger.pieces import Shard
from pipeline.source import parsing
from pipeline.source.columns import ReadRecipe, to_documents
from pipeline.source.jsonl import _split
from pipeline.source.parsing import Parser, check_readable

SHARD = Shard("a.jsonl", "/a.jsonl", "v", 1)
KEEP = pa.schema(
    [("n", pa.int64()), ("u", pa.uint8()), ("f", pa.float64()), ("b", pa.bool_()), ("s", pa.string()), ("l", pa.list_(pa.int8()))]
)
RECIPE = ReadRecipe("text", "id", KEEP, 2000)


def parse(lines: list[bytes], recipe: ReadRecipe = RECIPE) -> tuple[list[dict[str, Any]], dict[int, tuple[str, str | None]]]:
    """Documents, and reason and id of the others, by line number."""
    content = b"\n".join(lines) + b"\n"
    block = _split(content, 0, math.inf)
    raws, entries = Parser(recipe, SHARD.key).parse(block)
    rows: list[dict[str, Any]] = []
    for raw in raws:
        documents, bad = to_documents(raw, SHARD, recipe)
        rows += documents.to_pylist()
        entries += bad
    numbers = {int(row): i for i, row in enumerate(np.cumsum([0, *(len(line) + 1 for line in lines)]))}
    assert len(rows) + len(entries) == len(block)
    return [{**row, "_row": numbers[row["_row"]]} for row in rows], {numbers[e.row or 0]: (e.reason, e.id) for e in entries}


def _fits(value: object, column: str) -> bool:
    """Whether a JSON value fits a kept column, said in plain Python."""
    match column:
        case "n":
            return type(value) is int and -(2**63) <= value < 2**63
        case "u":
            return type(value) is int and 0 <= value < 256
        case "f":
            return type(value) in (int, float)
        case "b":
            return type(value) is bool
        case "s":
            return type(value) is str
        case _:
            return type(value) is list and all(v is None or (type(v) is int and -128 <= v < 128) for v in value)


def _half(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def reference(line: bytes, number: int, offset: int) -> dict[str, Any] | tuple[str, str | None]:
    """One line by `json.loads`: the document, or reason and id."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return ("bad_encoding", None)
    except ValueError:
        return ("bad_json", None)
    if not isinstance(value, dict):
        return ("bad_json", None)
    own, text = value.get("id"), value.get("text")
    id_ = f"a.jsonl#{offset}" if own is None else own if isinstance(own, str) else json.dumps(own)
    kept_id = None if _half(id_) else id_
    if text is not None and not isinstance(text, str):
        return ("not_text", kept_id)
    keep = {name: value.get(name) for name in KEEP.names}
    if any(v is not None and not _fits(v, name) for name, v in keep.items()):
        return ("bad_value", kept_id)
    if any(map(_half, [id_, text, keep])):
        return ("bad_encoding", kept_id)
    if text is None:
        return ("null_text", kept_id)
    if len(text.encode()) > RECIPE.max_document:
        return ("too_large", kept_id)
    return {"_row": number, **keep, "id": id_, TEXT: text}


def _same(one: object, other: object) -> bool:
    """Equal, NaN included."""
    return repr(one).replace("-0.0", "0.0") == repr(other).replace("-0.0", "0.0")


def assert_agrees(lines: list[bytes]) -> None:
    rows, bad = parse(lines)
    offset = 0
    documents, reasons = [], {}
    for number, line in enumerate(lines):
        if line.strip(b" \t\r"):
            truth = reference(line.strip(b" \t\r"), number, offset)
            if isinstance(truth, dict):
                documents.append({**truth, "f": None if truth["f"] is None else float(truth["f"])})
            else:
                reasons[number] = truth
        offset += len(line) + 1
    assert _same(rows, documents)
    assert bad == reasons


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-300, 300),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["a", "\x00", "{}", "😀"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=4
)
fitting = st.fixed_dictionaries(
    {"text": st.text(max_size=10)},
    optional={
        "id": st.text(max_size=5) | st.integers(0, 2**64 - 1) | st.none(),
        "n": st.integers(-(2**63), 2**63 - 1),
        "u": st.integers(0, 255) | st.none(),
        "f": st.floats() | st.integers(-(2**60), 2**60),
        "b": st.booleans(),
        "s": st.text(max_size=5),
        "l": st.lists(st.integers(-128, 127) | st.none(), max_size=3),
        "other": values,
    },
)
wild = st.dictionaries(st.sampled_from(["text", "id", "n", "u", "f", "b", "s", "l", "x"]), values)
objects = st.builds(
    lambda v, ascii_: json.dumps(v, ensure_ascii=ascii_).encode("utf-8", "surrogatepass"), fitting | wild | values, st.booleans()
)
odd = st.sampled_from(
    [
        b"",
        b"{",
        b"}",
        b'{"text":"a"}{"text":"b"}',
        b'{"text":"a"} {}',
        b'{"text":"a"}\x00{}',
        b'{"text":"a\x00"}',
        b'{"text":"a\tb"}',
        b'{"text":"a","text":"b"}',
        b'{"text":1,"text":"a"}',
        b'{"n":"x","n":1,"text":"a"}',
        b'{"text":"\\ud800"}',
        b'{"text":"\\udc00"}',
        b'{"text":"a","s":"\\ud800\\ud800","id":"i"}',
        b'{"text":"a","id":"\\ud83d"}',
        b'{"text":"a","x":"\\ud83d"}',
        b'{"text":"\\ud83d\\ude00"}',
        b'{"text":"\xff","id":"i"}',
        b'{"text":"a","x":"\xff"}',
        b'{"text":"\xed\xa0\x80"}',
        b'{"text":"a","f":NaN}',
        b'{"text":"a","f":-Infinity,"x":NaN}',
        b'{"text":"a","f":1e400}',
        b'{"text":"a","n":1.0}',
        b'{"text":"a","n":1e2}',
        b'{"text":"a","n":-0,"u":-0,"f":-0}',
        b'{"text":"a","n":9223372036854775808}',
        b'{"text":"a","id":18446744073709551616}',
        b'{"text":"a","id":1.50}',
        b'{"text":"a","x":01}',
        b'{"text":"a",}',
        b'\xef\xbb\xbf{"text":"a"}',
        b'{"te\\u0078t":"a"}',
        b'  {"text":"a"}\r',
        b'{"text":"a"}\x0c',
        b'{\r"text"\t:\r"a"}',
        b'{"text":' + b'"' + b"x" * 3000 + b'"}',
        b'{"text":"\xe2\x80\xa8\xc2\x85"}',
        b"null",
    ]
)
raw = st.binary(max_size=12).map(lambda b: b.replace(b"\n", b""))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(objects | odd | raw, min_size=1, max_size=12), st.sampled_from([1, 2, 256]))
@example([b'{"text":"a"}\x00', b'{"text":"b"}'], 1)
@example([b'{"text":"a","x":{}', b'{"text":"b"}}'], 1)
def test_blocks_agree_with_a_plain_loop(lines: list[bytes], few: int) -> None:
    if lines[0].startswith(b"\xef\xbb\xbf"):
        lines[0] = lines[0][3:]  # at the start of a file it is a byte order mark
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "_FEW", few)
        assert_agrees(lines)


@pytest.mark.parametrize("line", [b'{"text":"a","f":' + b"9" * 400 + b"}", b'{"text":"a","f":-' + b"9" * 5000 + b"}"])
def test_numbers_beyond_all_floats_are_infinite_either_way(line: bytes) -> None:
    for lines in ([line], [line, b"{"]):
        rows, _ = parse(lines)
        assert math.isinf(rows[0]["f"])


def test_digits_without_end_do_no_harm_where_nobody_asks_for_them() -> None:
    line = b'{"text":"a","x":' + b"9" * 5000 + b"}"
    assert [r[TEXT] for r in parse([line])[0]] == [r[TEXT] for r in parse([line, b"{"])[0]] == ["a"]


def test_deep_nesting_is_the_same_alone_and_beside_a_bad_line() -> None:
    deep = b'{"text":"a","id":7,"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    for lines in ([deep], [deep, b"{"], [deep, b'{"text":"b","id":"x"}']):
        rows, _ = parse(lines)
        assert (rows[0][TEXT], rows[0]["id"]) == ("a", "7")
    assert parse([b"[" * 50_000])[1] == {0: ("bad_json", None)}


def test_a_good_block_costs_no_single_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("read line by line")

    monkeypatch.setattr(Parser, "_line", refuse)
    for ids in (range(1000), map(str, range(1000)), range(2**63, 2**63 + 1000)):
        rows, bad = parse([json.dumps({"text": "中", "id": i, "n": 1, "x": {"y": [1]}}).encode() for i in ids])
        assert (len(rows), bad) == (1000, {})


def test_a_bad_line_costs_few_single_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    real = Parser._line
    monkeypatch.setattr(Parser, "_line", lambda self, line, row: looked_at.append(row) or real(self, line, row))
    lines = [b'{"text":"a"}'] * 5000
    lines[3210] = b"{"
    rows, bad = parse(lines)
    assert (len(rows), bad) == (4999, {3210: ("bad_json", None)})
    assert len(looked_at) <= parsing._FEW


@pytest.mark.parametrize(
    ("type_", "json_value", "value"),
    [
        (pa.timestamp("us", "UTC"), '"2026-11-20T01:02:03Z"', "2026-11-20 01:02:03+00:00"),
        (pa.date32(), '"2026-11-20"', "2026-11-20"),
        (pa.float32(), "0.5", "0.5"),
        (pa.float16(), "0.5", "0.5"),
        (pa.decimal128(5, 2), '"1.25"', "1.25"),
        (pa.struct([("a", pa.int8())]), '{"a": 5, "b": 6}', "{'a': 5}"),
        (pa.list_(pa.string()), '["x", null]', "['x', None]"),
        (pa.binary(), '"x"', "b'x'"),
    ],
)
def test_types_of_kept_columns(type_: pa.DataType, json_value: str, value: str) -> None:
    recipe = ReadRecipe("text", None, pa.schema([("c", type_)]), 100)
    good = f'{{"text":"a","c":{json_value}}}'.encode()
    for lines in ([good], [good, b"{"]):
        rows, _ = parse(lines, recipe)
        assert str(rows[0]["c"]) == value
    assert parse([b'{"text":"a","c":true}'], recipe)[1] == {0: ("bad_value", "a.jsonl#0")}
    assert parse([b'{"text":"a","c":null}', b'{"text":"a"}'], recipe)[1] == {}
    check_readable(recipe.keep)


def test_a_type_that_json_cannot_hold_is_refused_at_planning() -> None:
    with pytest.raises(ConfigError, match=r"input\.keep: column 'c' is month_day_nano_interval"):
        check_readable(pa.schema([("c", pa.month_day_nano_interval())]))


def test_the_id_may_be_a_kept_column_or_the_text_itself() -> None:
    recipe = ReadRecipe("text", "n", pa.schema([("n", pa.int64()), ("text", pa.string())]), 100)
    rows, bad = parse([b'{"text":"a","n":5}', b'{"text":"b","n":"x"}', b'{"text":"c"}'], recipe)
    assert [(r["id"], r["n"], r["text"]) for r in rows] == [("5", 5, "a"), ("a.jsonl#40", None, "c")]
    assert bad == {1: ("bad_value", "x")}
    rows, _ = parse([b'{"text":"a"}', b"{"], ReadRecipe("text", "text", pa.schema([]), 100))
    assert rows[0]["id"] == "a"


def test_details_say_where_and_never_what() -> None:
    lines = [
        b'{"text": "SECRET',
        b'{"text": SECRET}',
        b'["SECRET"]',
        b'{"text": ["SECRET"]}',
        b'{"text": "SECRET\xff"}',
        b'{"text":"","n":"SECRET"}',
    ]
    lines += [b'{"text": "SECRET\\ud800"}', b'{"text": "\\SECRET"}', b'{"text": "SECRET" "SECRET"}', b'{"SECRET"}']
    _, entries = Parser(RECIPE, "a").parse(_split(b"\n".join(lines), 0, math.inf))
    assert len(entries) == len(lines)
    assert "SECRET" not in repr(entries)
    details = {e.row: e.detail for e in entries}
    assert details[0] == "line of 16 bytes: Unterminated string starting at at column 10"
    assert "text is list" in details.values()
    assert "column 'n' is string, not int64" in details.values()
