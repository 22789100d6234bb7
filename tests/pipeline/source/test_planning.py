"""Planning: which shards are opened, the size of a piece, spans in shard order, and the limit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.schema import TEXT
from pipeline.batch import Batch
from pipeline.errors import ConfigError, TidemillError
from pipeline.ledger.pieces import Span
from pipeline.sections import Input
from pipeline.source.listing import list_shards
from pipeline.source.planning import Pins, SourcePlan, plan_source

Plan = Callable[..., SourcePlan]
Read = Callable[..., list[Batch]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five shards of ten rows each, texts `<shard> <row>`."""
    root = tmp_path / "in"
    root.mkdir()
    lines = {name: "".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(10)).encode() for name in "bcd"}
    pq.write_table(pa.table({"text": [f"a {i}" for i in range(10)]}), root / "a.parquet", row_group_size=4)
    (root / "b.jsonl").write_bytes(lines["b"])
    (root / "c.jsonl.gz").write_bytes(gzip.compress(lines["c"]))
    (root / "d.jsonl.zst").write_bytes(zstandard.compress(lines["d"]))
    pq.write_table(pa.table({"text": [f"e {i}" for i in range(10)]}), root / "e.parquet")
    return root


def test_spans_stand_in_shard_order(corpus: Path, plan: Plan) -> None:
    planned = plan(path=str(corpus))
    assert [(s.shard.key, s.start, s.rows) for s in planned.spans] == [
        ("a.parquet", 0, 10),
        ("b.jsonl", 0, None),
        ("c.jsonl.gz", 0, None),
        ("d.jsonl.zst", 0, None),
        ("e.parquet", 0, 10),
    ]
    assert planned.piece_bytes == 2**20
    sizes = [(corpus / s.shard.key).stat().st_size for s in planned.spans]
    assert [s.weight for s in planned.spans][1:4] == [sizes[1], 4 * sizes[2], 4 * sizes[3]]
    assert planned.text_bytes == sum(s.weight for s in planned.spans)


def test_the_size_of_a_piece(tmp_path: Path, plan: Plan) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        with (tmp_path / name).open("wb") as file:
            file.write(b'{"text": "a"}\n')
            file.truncate(2**30)  # sparse: nothing reads it whole
    planned = plan(path=str(tmp_path))
    assert planned.piece_bytes == 2**31 // 512
    assert len(planned.spans) == 512
    with (tmp_path / "b.jsonl").open("r+b") as file:
        file.truncate(2**35)
    assert plan(path=str(tmp_path)).piece_bytes == 32 * 2**20
    assert plan(path=str(tmp_path), piece="1GiB").piece_bytes == 2**30
    settings = Input(path=str(tmp_path))
    assert plan_source(settings, list_shards(settings, "/x"), Pins(piece_bytes=12345678), {}).piece_bytes == 12345678


def test_a_footer_that_cannot_be_read_is_an_unreadable_span(corpus: Path, plan: Plan) -> None:
    (corpus / "a.parquet").write_bytes(b"PAR1 and nothing else")
    (corpus / "aa.parquet").touch()
    first, second, *rest = plan(path=str(corpus)).spans
    assert (first.start, first.stop, first.rows, first.weight) == (0, None, None, 0)
    assert "magic bytes" in (first.unreadable or "")
    assert "size is 0" in (second.unreadable or "")
    assert not any(span.unreadable for span in rest)


def test_a_fault_of_the_store_is_never_called_unreadable(corpus: Path, plan: Plan) -> None:
    settings = Input(path=str(corpus))
    listing = list_shards(settings, "/x")
    (corpus / "e.parquet").unlink()
    with pytest.raises(TidemillError, match=r"cannot open shard e\.parquet: FileNotFoundError") as error:
        plan_source(settings, listing, Pins(), {})
    assert error.value.exit_code == 1


def test_shards_that_the_table_holds_are_not_opened(corpus: Path) -> None:
    settings = Input(path=str(corpus), keep=["lang"])
    listing = list_shards(settings, "/x")
    pins = Pins(2**20, pa.schema([("lang", pa.int8())]))
    held = {
        (s.key, s.version): [
            Span(replace(s, url="", size=0), 0, 5, 77, rows=5),
            Span(replace(s, url="", size=0), 5, 10, 77, rows=5),
        ]
        for s in listing.shards
    }
    (corpus / "e.parquet").unlink()  # whoever opens it fails
    planned = plan_source(settings, listing, pins, held)
    assert planned.keep == pins.schema
    assert [(s.shard, s.start, s.piece_bytes) for s in planned.spans] == [
        (shard, start, 77) for shard in listing.shards for start in (0, 5)
    ]
    new = {key: spans for key, spans in held.items() if key[0] != "b.jsonl"}
    planned = plan_source(settings, listing, pins, new)
    assert [(s.start, s.stop, s.piece_bytes) for s in planned.spans if s.shard.key == "b.jsonl"] == [
        (0, listing.shards[1].size, 2**20)
    ]


def test_they_are_opened_where_a_type_has_to_be_found(corpus: Path) -> None:
    settings = Input(path=str(corpus), keep=["new"])
    listing = list_shards(settings, "/x")
    held = {(s.key, s.version): [Span(s, 0, 10, 77, rows=10)] for s in listing.shards}
    with pytest.raises(ConfigError, match="no shard has a column 'new'"):
        plan_source(settings, listing, Pins(2**20, pa.schema([])), held)


def test_new_shards_may_lack_columns_that_the_table_has(corpus: Path) -> None:
    settings = Input(path=str(corpus), text="body", id="doc")
    listing = list_shards(settings, "/x")
    held = {(s.key, s.version): [Span(s, 0, 10, 77, rows=10)] for s in listing.shards[:1]}
    assert plan_source(settings, listing, Pins(2**20), held).spans
    with pytest.raises(ConfigError, match="no shard has a column 'body'"):
        plan_source(settings, listing, Pins(2**20), {})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(20, 200))
def test_a_limit_takes_the_first_rows_in_shard_order(corpus: Path, plan: Plan, read: Read, limit: int, piece: int) -> None:
    every = [f"{shard} {row}" for shard in "abcde" for row in range(10)]
    pieces = read(path=str(corpus), limit=limit, piece=piece)
    assert [text for p in pieces for text in p.documents[TEXT].to_pylist()] == every[:limit]
    assert sum(p.rows_in for p in pieces) == min(limit, 50)
    spans = plan(path=str(corpus), limit=limit, piece=piece).spans
    assert all(s.rows is None or s.rows == (s.stop or 0) - s.start for s in spans)
    assert {s.shard.key[0] for s in spans} == {text[0] for text in every[:limit]}


def test_a_limit_counts_bad_rows_and_unreadable_shards(corpus: Path, read: Read) -> None:
    (corpus / "a.parquet").write_bytes(b"")
    (corpus / "b.jsonl").write_text('{"text": 1}\n\n{bad\n{"text": "b"}\n')
    pieces = read(path=str(corpus), limit=4, format="auto")
    assert [(p.rows_in, p.documents.num_rows) for p in pieces] == [(1, 0), (3, 1)]


def test_a_limit_that_is_not_reached_changes_nothing(corpus: Path, plan: Plan) -> None:
    assert plan(path=str(corpus), limit=1000).spans == plan(path=str(corpus)).spans


def test_many_shards_are_sampled_not_read(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(100):
        (tmp_path / f"{i:03}.jsonl").write_text('{"text": "a"}')
    from pipeline.source import jsonl

    opened: list[Any] = []
    real = jsonl.open_shard
    monkeypatch.setattr(jsonl, "open_shard", lambda *a, **k: opened.append(a) or real(*a, **k))
    assert len(plan(path=str(tmp_path)).spans) == 100
    assert len(opened) == 16
