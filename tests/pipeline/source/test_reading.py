"""Reading spans: pieces, books of each piece, every reason, and going on after a stop."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from operators.schema import ID, ROW, TEXT, documents_schema
from pipeline import quarantine
from pipeline.batch import Batch
from pipeline.errors import TidemillError
from pipeline.ledger.pieces import Shard, Span, Todo
from pipeline.sections import Input
from pipeline.source import jsonl, reading
from pipeline.source.planning import SourcePlan
from pipeline.source.reading import ReadRecipe, read_span

Plan = Callable[..., SourcePlan]
Read = Callable[..., list[Batch]]

LINES = [
    b'{"text": "good one", "doc": 1, "lang": "en", "stars": 5}',
    b'{"text": "", "doc": null}',
    b"   ",
    b'{"text": null, "doc": "n"}',
    b'{"doc": "missing"}',
    b'{"text": 12, "doc": "number"}',
    b'{"text": "torn',
    b"[1, 2]",
    b'{"text": "\xff", "doc": "broken"}',
    b'{"text": "\\ud800", "doc": "half"}',
    b'{"text": "fine", "doc": "value", "stars": "five"}',
    b'{"text": "' + b"x" * 2000 + b'", "doc": "long"}',
    b'{"text": "last", "doc": "x"}',
]
REASONS = {
    3: ("null_text", "n"),
    4: ("null_text", "missing"),
    5: ("not_text", "number"),
    6: ("bad_json", None),
    7: ("bad_json", None),
    8: ("bad_encoding", None),
    9: ("bad_encoding", "half"),
    10: ("bad_value", "value"),
    11: ("too_large", "long"),
}
SETTINGS: dict[str, Any] = {"id": "doc", "keep": {"lang": None, "stars": "int64"}, "max_document": 1000}


def books_close(pieces: list[Batch], keep: pa.Schema) -> None:
    for piece in pieces:
        assert piece.documents.schema == documents_schema(keep)
        assert piece.quarantine.schema == quarantine.SCHEMA
        assert piece.rows_in == piece.documents.num_rows + piece.quarantine.num_rows
        rows = piece.documents[ROW].to_pylist()
        assert rows == sorted(set(rows))
        piece.documents.validate(full=True)


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_reason_of_json_lines(
    tmp_path: Path, plan: Plan, read: Read, suffix: str, compress: Callable[[bytes], bytes], end: bytes
) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(end.join(LINES)))
    (piece,) = read(path=str(tmp_path), **SETTINGS)
    books_close([piece], plan(path=str(tmp_path), **SETTINGS).keep)
    offsets = [sum(len(line) + len(end) for line in LINES[:i]) for i in range(len(LINES))]
    entries = piece.quarantine.to_pylist()
    assert [(e["_row"], e["reason"], e["id"]) for e in entries] == [(offsets[i], *REASONS[i]) for i in sorted(REASONS)]
    key = f"a.jsonl{suffix}"
    assert {e["_shard"] for e in entries} == {key}
    assert piece.documents.to_pylist() == [
        {"_row": 0, "lang": "en", "stars": 5, "id": "1", "__text": "good one"},
        {"_row": offsets[1], "lang": None, "stars": None, "id": f"{key}#{offsets[1]}", "__text": ""},
        {"_row": offsets[12], "lang": None, "stars": None, "id": "x", "__text": "last"},
    ]
    assert (piece.index, piece.start, piece.stop, piece.last) == (0, 0, offsets[12] + len(LINES[12]), True)


def test_every_reason_of_parquet(tmp_path: Path, read: Read) -> None:
    texts = pa.array([b"good", b"", None, b"\xff", b"x" * 1001, b"fine"], pa.binary())
    table = {"text": texts, "doc": ["a", "b", "c", "d", "e", None], "stars": [1.0, 2.0, 3.0, 4.0, 5.0, 0.5], "lang": ["en"] * 6}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([7, None]), "doc": [1, 2]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"doc": ["no text here"]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    pieces = read(path=str(tmp_path), **SETTINGS)
    books_close(pieces, pa.schema([("lang", pa.string()), ("stars", pa.int64())]))
    assert [p.documents[TEXT].to_pylist() for p in pieces] == [["good", ""], [], [], [], []]
    assert [[(e["_row"], e["reason"], e["id"]) for e in p.quarantine.to_pylist()] for p in pieces] == [
        [(2, "null_text", "c"), (3, "bad_encoding", "d"), (4, "too_large", "e"), (5, "bad_value", "a.parquet#5")],
        [(0, "not_text", "1"), (1, "null_text", "2")],
        [(0, "null_text", "no text here")],
        [],
        [(None, "unreadable", None)],
    ]
    assert [p.rows_in for p in pieces] == [6, 2, 1, 0, 1]
    assert all(p.last and p.index == 0 for p in pieces)


def test_a_corrupt_row_group_costs_its_piece_alone(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(90)]}), path, row_group_size=30, compression="gzip")
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content[chunk.data_page_offset : chunk.data_page_offset + 60] = bytes(60)
    path.write_bytes(content)
    pieces = read(path=str(path), piece=600)
    assert [(p.start, p.stop) for p in pieces] == [(0, 30), (30, 60), (60, 90)]
    assert [p.documents.num_rows for p in pieces] == [30, 0, 30]
    assert [(e["_row"], e["reason"]) for e in pieces[1].quarantine.to_pylist()] == [(None, "unreadable")]
    assert pieces[1].rows_in == 1


def test_a_stream_that_breaks_off(tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK", 1000)
    lines = [json.dumps({"text": os.urandom(20).hex()}).encode() + b"\n" for _ in range(1000)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines))[:-2000])
    pieces = read(path=str(tmp_path), piece=5000)
    books_close(pieces, pa.schema([]))
    assert [p.index for p in pieces] == list(range(len(pieces)))
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [(p.rows_in, p.quarantine["reason"].to_pylist()) for p in pieces][-1] == (1, ["unreadable"])
    texts = [t for p in pieces for t in p.documents[TEXT].to_pylist()]
    assert 500 < len(texts) < 1000
    assert texts == [json.loads(line)["text"] for line in lines[: len(texts)]]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_only_the_torn_piece_of_a_stream_is_lost(tmp_path: Path, read: Read, suffix: str) -> None:
    content = b"".join(json.dumps({"text": os.urandom(20).hex()}).encode() + b"\n" for _ in range(20_000))
    stored = (gzip.compress(content) if suffix == ".gz" else zstandard.compress(content))[:-3000]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(stored)
    decoder = zlib.decompressobj(31) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    decoded = decoder.decompress(stored)
    pieces = read(path=str(tmp_path), piece=5000)
    assert pieces[-1].quarantine["reason"].to_pylist() == ["unreadable"]
    assert sum(p.quarantine.num_rows for p in pieces) == 1
    n_lines = decoded.count(b"\n")
    assert n_lines - 5000 // 52 - 1 <= sum(p.documents.num_rows for p in pieces) <= n_lines


def _comparable(piece: Batch) -> tuple[Any, ...]:
    return (piece.index, piece.start, piece.stop, piece.last, piece.rows_in, piece.documents, piece.quarantine)


@pytest.mark.parametrize("done", [set(), {0}, {1, 2}, {0, 2, 9}, set(range(9)), set(range(100))])
def test_pieces_that_are_done_are_read_past(tmp_path: Path, plan: Plan, done: set[int]) -> None:
    lines = [b'{"text": "text %d"}\n' % i if i % 7 else b"{bad\n" for i in range(500)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    (span,) = plan(path=str(tmp_path), piece=1000).spans
    recipe = ReadRecipe("text", None, pa.schema([]), 1000)
    every = list(read_span(Todo(span), recipe))
    assert len(every) == 10
    books_close(every, pa.schema([]))
    left = list(read_span(Todo(span, frozenset(done)), recipe))
    assert list(map(_comparable, left)) == [_comparable(p) for p in every if p.index not in done]


def test_done_pieces_of_other_spans(tmp_path: Path, plan: Plan) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").touch()
    recipe = ReadRecipe("text", None, pa.schema([]), 1000)
    for span in plan(path=str(tmp_path)).spans:
        assert len(list(read_span(Todo(span), recipe))) == 1
        assert list(read_span(Todo(span, frozenset({0})), recipe)) == []


def test_pieces_have_a_limited_number_of_rows(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":""}\n' * 45_000)
    pq.write_table(pa.table({"text": [""] * 45_000}), tmp_path / "b.parquet")
    assert [p.rows_in for p in read(path=str(tmp_path))] == [20_000, 20_000, 5_000, 15_000, 15_000, 15_000]


def test_a_shard_that_changed_is_left_without_record(tmp_path: Path, plan: Plan) -> None:
    for name in ("a.jsonl", "b.parquet"):
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
        (tmp_path / "a.jsonl").write_text('{"text": "a"}')
        first, second = plan(path=str(tmp_path)).spans
        span = first if name == "a.jsonl" else second
        os.utime(tmp_path / name, ns=(1, 1))
        with pytest.raises(TidemillError, match="changed during the run"):
            list(read_span(Todo(span), ReadRecipe("text", None, pa.schema([]), 1000)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_shard_replaced_while_it_is_read_is_not_corrupt(tmp_path: Path, plan: Plan, name: str) -> None:
    """Its old half may decode and its new half may not; neither is a piece of any version."""
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": [f"text {i}" for i in range(3000)]}), path, row_group_size=1000)
    else:
        lines = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(3000))
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    planned = plan(path=str(path.parent), piece=20_000)
    recipe = ReadRecipe("text", None, pa.schema([]), 1000)
    spans = [span for span in planned.spans if span.shard.key == name]
    pieces = (piece for span in spans for piece in read_span(Todo(span), recipe))
    assert next(pieces).quarantine.num_rows == 0
    path.write_bytes(os.urandom(path.stat().st_size))
    with pytest.raises(TidemillError, match="changed during the run"):
        next(pieces)


def test_texts_that_come_to_more_than_a_piece_may_hold(tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIECE", 10_000)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 10]))
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    (piece,) = read(path=str(tmp_path), piece=1000, max_document=100)
    books_close([piece], pa.schema([]))
    assert piece.rows_in == 5000
    assert piece.documents.nbytes < 200_000
    assert set(piece.quarantine["reason"].to_pylist()) == {"too_large"}
    assert [r["_row"] for r in piece.quarantine.to_pylist()] == list(range(piece.documents.num_rows, 5000))


def test_the_recipe_travels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"body": "a", "n": 1}')
    recipe = ReadRecipe("body", None, pa.schema([("n", pa.int8())]), 1000, "jsonl", {"auto_mkdir": False})
    shard = Shard("a.txt", str(tmp_path / "a.txt"), f"21-{os.stat(tmp_path / 'a.txt').st_mtime_ns}", 21)
    (piece,) = read_span(pickle.loads(pickle.dumps(Todo(Span(shard, 0, 21, 100)))), pickle.loads(pickle.dumps(recipe)))
    assert piece.documents.to_pylist() == [{"_row": 0, "n": 1, "id": "a.txt#0", "__text": "a"}]


def test_hive_partitions_of_both_formats(tmp_path: Path, read: Read) -> None:
    for day in ("1", "2"):
        folder = tmp_path / f"day={day}" / "lang=z%68"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text('{"text": "a", "lang": "ignored"}')
        pq.write_table(pa.table({"text": ["b"]}), folder / "b.parquet")
    pieces = read(path=str(tmp_path), keep={"day": "int32", "lang": None})
    assert [tuple(p.documents.to_pylist()[0].values())[1:3] for p in pieces] == [(1, "zh"), (1, "zh"), (2, "zh"), (2, "zh")]


def test_s3(s3_server: Any, read: Read) -> None:
    bucket = s3_server.make_bucket()
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    lines = b"".join(json.dumps({"text": f"text {i}", "doc": i}).encode() + b"\n" for i in range(3000))
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(3000)], "doc": range(3000)}), parquet, row_group_size=1000)
    bodies = {
        "a.jsonl": lines,
        "b.jsonl.gz": gzip.compress(lines),
        "c.parquet": parquet.getvalue().to_pybytes(),
        "d.jsonl.zst": zstandard.compress(lines),
    }
    for name, body in {**bodies, "e.parquet": b"PAR1"}.items():
        client.put_object(Bucket=bucket, Key=f"in/{name}", Body=body)
    settings = {"path": f"s3://{bucket}/in", "storage_options": s3_server.storage_options, "id": "doc", "piece": 20_000}
    pieces = read(**settings)
    books_close(pieces, pa.schema([]))
    rows = {name: [p for p in pieces if p.span.shard.key == name] for name in bodies}
    for name, of_shard in rows.items():
        assert len(of_shard) > 1, name
        assert [t for p in of_shard for t in p.documents[TEXT].to_pylist()] == [f"text {i}" for i in range(3000)]
        assert [i for p in of_shard for i in p.documents[ID].to_pylist()] == [str(i) for i in range(3000)]
    assert Counter(r for p in pieces for r in p.quarantine["reason"].to_pylist()) == {"unreadable": 1}
    span = rows["a.jsonl"][0].span
    client.put_object(Bucket=bucket, Key="in/a.jsonl", Body=lines + b"\n")
    with pytest.raises(TidemillError, match=r"a\.jsonl changed during the run"):
        list(read_span(Todo(span), ReadRecipe("text", "doc", pa.schema([]), 1000, "auto", s3_server.storage_options)))
    assert Input(**settings).storage_options == s3_server.storage_options
