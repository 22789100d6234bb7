"""`tidemill eval` as a process, over a committed table of embeddings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import open_output

Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]

TOPICS = {"sea": "ship island storm rain", "law": "king queen war law", "[bold]": "cell gene drug blood"}


@pytest.fixture
def table(tmp_path: Path, job: Callable[..., Path], tidemill: Tidemill) -> Path:
    """A committed table of 12 texts on three topics, with kept columns `topic` and `near`."""
    rows = [
        {"doc": f"{topic}-{i}", "topic": topic, "near": [f"{topic}-{(i + 1) % 4}"], "text": " ".join(words.split()[: i + 1])}
        for topic, words in TOPICS.items()
        for i in range(4)
    ]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:7]), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[7:]), tmp_path / "in" / "b.parquet")
    done = tidemill("run", job(input={"keep": ["topic", "near"]}), "--json")
    assert done.returncode == 0, done.stderr
    return tmp_path / "out"


def scored(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def hits_at_1(table: Path) -> float:
    """The share of rows whose nearest row is of their topic, from the vectors themselves."""
    rows = open_output(str(table)).to_table()
    vectors = np.array(rows["vector"].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T - 3 * np.eye(len(vectors))
    topics = np.array(rows["topic"].to_pylist())
    return float((topics[cosines.argmax(axis=1)] == topics).mean())


def test_a_table_is_scored_against_its_columns_and_a_file(tmp_path: Path, table: Path, tidemill: Tidemill) -> None:
    picture = tmp_path / "recall.svg"
    options = ("--task", "vector", "--k", "11,1", "--json")
    by_topic = scored(tidemill("eval", table, "--gold", "topic", *options, "--picture", picture))
    assert (by_topic["metric"], by_topic["rows"]) == ("retrieval_by_label", 12)
    assert set(by_topic["per_label"]) == set(TOPICS)
    assert by_topic["overall"]["recall@11"] == 1
    assert by_topic["overall"]["recall@1"] == pytest.approx(hits_at_1(table) / 3)
    assert "<svg" in picture.read_text()

    by_id = scored(tidemill("eval", table, "--gold", "near", *options))
    assert (by_id["metric"], by_id["rows"], by_id["overall"]["relevant_not_in_table"]) == ("retrieval", 12, 0)

    (tmp_path / "gold.jsonl").write_text('{"id": "sea-0", "near": ["sea-1"]}\n{"id": "sea-9", "near": ["sea-1"]}\n')
    of_file = scored(tidemill("eval", table, "--gold", tmp_path / "gold.jsonl", *options))
    assert (of_file["rows"], of_file["without_gold"], of_file["without_prediction"]) == (1, 11, 1)

    shown = tidemill("eval", table, "--gold", "topic", "--task", "vector")
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("vector: retrieval_by_label", "recall@10", "mrr", "[bold]", "sea", "support"))


def test_what_does_not_fit_is_exit_2(tmp_path: Path, table: Path, tidemill: Tidemill) -> None:
    (tmp_path / "gold.jsonl").write_text('{"id": "other", "near": ["sea-1"]}\n')
    for arguments, message in [
        ((tmp_path, "--task", "vector", "--gold", "topic"), "there is no committed table"),
        ((table, "--task", "label", "--gold", "topic"), "--task: the table has no column 'label'"),
        ((table, "--task", "n_tokens", "--gold", "topic"), "--task: there is no metric for column 'n_tokens'"),
        ((table, "--task", "vector", "--gold", "topic", "--on", "url"), "--on: the table has no column 'url'"),
        ((table, "--task", "vector", "--gold", "n_tokens"), "--gold: gold is int32"),
        ((table, "--task", "vector", "--gold", "label"), "--gold: names neither a column of the table nor a FILE"),
        ((table, "--task", "vector", "--gold", tmp_path / "gold.jsonl"), "--on: the 12 rows of the table and the 1 rows of gold"),
        ((table, "--task", "vector", "--gold", "topic", "--k", "1,0"), "--k: '1,0' is no list of numbers above 0"),
        ((table, "--task", "vector", "--gold", "topic", "--picture", "x.pdf"), "--picture: 'x.pdf' ends in neither"),
    ]:
        done = tidemill("eval", *arguments, "--json")
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in json.loads(done.stdout)["error"]
