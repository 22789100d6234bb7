"""A whole job that scores pairs of columns."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import CrossEncoder

from pipeline import open_output
from tests.jobs.conftest import text
from tests.tiny import tiny_task


def test_pairs_are_scored_and_pairs_without_a_second_text_set_aside(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "in").mkdir()
    queries = ["river", None, "moon and star", "", "rain " * 100]
    texts = [text(row, length) for row, length in enumerate([3, 3, 2, 150, 3])]
    lines = [json.dumps({"doc": str(row), "text": t, "query": q}) for row, (t, q) in enumerate(zip(texts, queries, strict=True))]
    (tmp_path / "in" / "pairs.jsonl").write_text("\n".join(lines))
    model = tiny_task(tmp_path / "model", "SequenceClassification", num_labels=1, max_positions=96)
    task = {"head": "pair_score", "model": str(model), "text_pair": "query", "order": "pair_first"}
    config = job(tasks={"relevance": task}, input={"keep": []})
    done = tidemill("run", config, "--json")
    assert done.returncode == 0, done.stderr
    books = json.loads(done.stdout)["books"]
    assert books["quarantined"] == {"bad_value": 1, "too_long": 1}

    table = open_output(str(tmp_path / "out")).to_table()
    assert table.schema.field("relevance").type == pa.float32()
    assert table["id"].to_pylist() == ["0", "2", "3"]
    assert table["n_segments"].to_pylist()[:2] == [1, 1]
    assert table["n_segments"].to_pylist()[2] > 2
    pairs = [(queries[row], texts[row]) for row in (0, 2)]
    expected = CrossEncoder(str(model), device="cpu").predict(pairs, show_progress_bar=False)
    assert table["relevance"].to_pylist()[:2] == pytest.approx(expected.tolist(), abs=1e-5)

    listed = json.loads(tidemill("files", tmp_path / "out", "--quarantine", "--json").stdout)["files"]
    aside = pa.concat_tables([pq.read_table(file) for file in listed]).to_pylist()
    assert sorted((entry["id"], entry["reason"]) for entry in aside) == [("1", "bad_value"), ("4", "too_long")]
    assert all("rain" not in entry["detail"] for entry in aside)


def test_a_column_that_no_shard_has_is_refused_before_the_work(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["moon"]}), tmp_path / "in" / "one.parquet")
    model = tiny_task(tmp_path / "model", "SequenceClassification", num_labels=1)
    task = {"head": "pair_score", "model": str(model), "text_pair": "query"}
    refused = tidemill("run", job(tasks={"relevance": task}, input={"keep": [], "id": None}))
    assert refused.returncode == 2, refused.stderr
    assert "query" in refused.stderr
