"""Parquet: spans tile the shard, slices read the same rows in any order, memory stays bounded, corrupt content is found."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger.pieces import MAX_ROWS, Shard, Span
from pipeline.source import parquet
from pipeline.source.columns import ReadRecipe
from pipeline.source.storage import Corrupt

SHARD = Shard("a", "/a", "v", 1)
RECIPE = ReadRecipe("text", "id", pa.schema([]), 2**20)


@given(st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 10_000))), st.integers(1, 5_000))
def test_spans_tile_the_shard(groups: list[tuple[int, int]], piece_bytes: int) -> None:
    groups = [(rows, size if rows else 0) for rows, size in groups]
    spans = parquet.cut_spans(SHARD, groups, piece_bytes)
    assert [s.start for s in spans] == [0, *(s.stop for s in spans[:-1])]
    assert spans[-1].stop == sum(rows for rows, _ in groups)
    assert all(s.rows == (s.stop or 0) - s.start <= MAX_ROWS for s in spans)
    assert all(s.rows for s in spans) or len(spans) == 1
    starts = {0, *(sum(rows for rows, _ in groups[:i]) for i in range(len(groups) + 1))}
    # A span either keeps to whole row groups, or lies within a single one.
    for span in spans:
        inside = [s for s in starts if span.start < s < (span.stop or 0)]
        assert not inside or {span.start, span.stop} <= starts


def test_small_groups_share_a_span_and_large_ones_are_sliced_evenly() -> None:
    spans = parquet.cut_spans(SHARD, [(10, 40), (10, 40), (10, 40), (30, 1000), (5, 1)], 100)
    assert [(s.start, s.stop) for s in spans] == [(0, 20), (20, 30), *((30 + 3 * i, 33 + 3 * i) for i in range(10)), (60, 65)]
    assert [s.weight for s in spans] == [80, 40, *[100] * 10, 1]
    assert [(s.start, s.stop, s.rows) for s in parquet.cut_spans(SHARD, [], 100)] == [(0, 0, 0)]


def _write(path: Path, n_rows: int = 1000, group: int = 400) -> Path:
    columns = {"text": [f"text {i}" for i in range(n_rows)], "other": ["x" * 100] * n_rows, "id": range(n_rows)}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def _texts(span: Span, recipe: ReadRecipe = RECIPE) -> list[str]:
    texts: list[str] = []
    for raw in parquet.read_batches(span, recipe):
        assert set(raw.columns) == {"text", "id"}
        assert raw.rows.tolist() == [int(t.split()[1]) for t in raw.columns["text"].to_pylist()] == raw.columns["id"].to_pylist()
        texts += raw.columns["text"].to_pylist()
    return texts


def test_footer(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    shard = shard_of(_write(tmp_path / "a.parquet"))
    footer = parquet.read_footer(shard, "text", {})
    assert footer.schema.names == ["text", "other", "id"]
    metadata = pq.read_metadata(shard.url)
    assert footer.groups == tuple(
        (rows, metadata.row_group(i).column(0).total_uncompressed_size) for i, rows in enumerate((400, 400, 200))
    )
    assert [size for _, size in parquet.read_footer(shard, "absent", {}).groups] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_slices_in_any_order_read_every_row_once(tmp_path: Path, shard_of: Callable[[Path], Shard], seed: int) -> None:
    shard = shard_of(_write(tmp_path / "a.parquet"))
    spans = parquet.cut_spans(shard, parquet.read_footer(shard, "text", {}).groups, 700)
    assert len(spans) > 10
    shuffled = random.Random(seed).sample(spans, len(spans))
    texts = {span: _texts(span) for span in shuffled}
    assert [t for span in spans for t in texts[span]] == [f"text {i}" for i in range(1000)]


def test_a_row_group_is_opened_once_for_all_its_slices(
    tmp_path: Path, shard_of: Callable[[Path], Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(_write(tmp_path / "a.parquet", group=1000))
    spans = parquet.cut_spans(shard, [(1000, 10_000)], 100)
    opened: list[Any] = []
    real = parquet.open_shard
    monkeypatch.setattr(parquet, "open_shard", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1])
    assert [t for span in spans for t in _texts(span)] == [f"text {i}" for i in range(1000)]
    assert len(opened) == 1
    assert opened[0].closed, "the last slice lets go of the file"
    for i in range(3 * parquet._PARKED):
        other = shard_of(_write(tmp_path / f"{i}.parquet", group=1000))
        _texts(parquet.cut_spans(other, [(1000, 10_000)], 100)[0])
    assert sum(not file.closed for file in opened) == parquet._PARKED


def test_a_reader_that_was_given_up_does_no_harm(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    shard = shard_of(_write(tmp_path / "a.parquet", group=1000))
    first, second, *_ = parquet.cut_spans(shard, [(1000, 10_000)], 1000)
    reading = parquet.read_batches(first, RECIPE)
    next(reading)
    reading.close()
    assert _texts(second) == [f"text {i}" for i in range(100, 200)]
    assert _texts(first) == [f"text {i}" for i in range(100)]


def test_without_any_wanted_column_rows_still_count(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    shard = shard_of(_write(tmp_path / "a.parquet"))
    recipe = ReadRecipe("absent", None, pa.schema([]), 100)
    raws = list(parquet.read_batches(Span(shard, 350, 900, 1), recipe))
    assert [row for raw in raws for row in raw.rows] == list(range(350, 900))
    assert all(raw.columns == {} for raw in raws)


def test_a_footer_that_is_none_is_corrupt(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    whole = _write(tmp_path / "a.parquet").read_bytes()
    for size in (0, 3, 12, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.parquet").write_bytes(whole[:size])
        with pytest.raises(Corrupt):
            parquet.read_footer(shard_of(tmp_path / "b.parquet"), "text", {})


def test_a_corrupt_row_group_is_corrupt_and_the_others_are_not(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = _write(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\x99" * chunk.total_compressed_size
    path.write_bytes(content)
    shard = shard_of(path)
    assert len(_texts(Span(shard, 0, 400, 1))) == 400
    with pytest.raises(Corrupt):
        _texts(Span(shard, 400, 800, 1))
    assert len(_texts(Span(shard, 800, 1000, 1))) == 200


_MEASURE = """
import sys
import pyarrow as pa
from benchmarks.peak import peak_bytes
from pipeline.sections import Input
from pipeline.ledger.pieces import Todo
from pipeline.source.listing import list_shards
from pipeline.source.planning import Pins, plan_source
from pipeline.source.reading import ReadRecipe, read_span
settings = Input(path=sys.argv[1], max_document=int(sys.argv[2]), piece=65536)
recipe = ReadRecipe("text", None, pa.schema([]), settings.max_document)
before = peak_bytes()
spans = plan_source(settings, list_shards(settings, "/nowhere"), Pins(), {}).spans
rows = [(p.rows_in, p.documents.num_rows) for span in spans for p in read_span(Todo(span), recipe)]
print(len(spans), sum(r for r, _ in rows), sum(d for _, d in rows), peak_bytes() - before)
"""


def _measured(path: Path, max_document: int) -> list[int]:
    command = [sys.executable, "-c", _MEASURE, str(path), str(max_document)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    return [int(word) for word in result.stdout.split()]


def test_memory_does_not_grow_with_columns_that_are_not_read(tmp_path: Path) -> None:
    n_rows, path = 20_000, tmp_path / "a.parquet"
    payload = pa.FixedSizeBinaryArray.from_buffers(pa.binary(10_000), n_rows, [None, pa.py_buffer(bytes(n_rows * 10_000))])
    table = pa.table({"payload": payload, "text": [f"short text {i}" for i in range(n_rows)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=n_rows)
    assert path.stat().st_size > 200_000_000
    spans, rows, documents, growth = _measured(path, 2**20)
    assert (rows, documents) == (n_rows, n_rows)
    assert spans > 3
    assert growth < 100 * 2**20


def test_memory_does_not_grow_with_what_a_dictionary_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"text": text}), path)
    assert path.stat().st_size < 2**20
    _, rows, documents, growth = _measured(path, 2**16)
    assert (rows, documents) == (2000, 0)
    assert growth < 900 * 2**20, "2000 MiB of text would come of it"
