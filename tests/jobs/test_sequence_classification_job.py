"""A whole job that labels documents."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import transformers

from pipeline import open_output
from tests.jobs.conftest import write_corpus
from tests.tiny import tiny_task

LABELS = ["sad", "glad", "calm"]
ONE = pa.struct([("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])
SEVERAL = pa.struct([("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
WINDOWS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), *ONE]))


def test_a_corpus_is_labelled(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rows = write_corpus(tmp_path / "in", shards=2)
    model = tiny_task(tmp_path / "model", "SequenceClassification", num_labels=3, id2label=dict(enumerate(LABELS)))
    task = {"head": "sequence_classification", "model": str(model)}
    tasks = {
        "mood": task,
        "moods": {**task, "multi_label": True, "threshold": 0.4},
        "parts": {**task, "aggregate": "none"},
    }
    done = tidemill("run", job(tasks=tasks, input={"keep": {"text": "string"}}), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["books"]["rows_out"] == rows

    table = open_output(str(tmp_path / "out")).to_table()
    assert [table.schema.field(name).type for name in tasks] == [ONE, SEVERAL, WINDOWS]
    mine = table.to_pylist()
    assert max(row["n_segments"] for row in mine) > 2
    assert [len(row["parts"]) for row in mine] == [row["n_segments"] for row in mine]
    assert all(row["parts"][-1]["end"] == len(row["text"].rstrip()) for row in mine)

    short = [row for row in mine if row["n_segments"] == 1][:4]
    run = transformers.pipeline("text-classification", model=str(model), device="cpu")
    for row in short:
        expected = {entry["label"]: entry["score"] for entry in run(row["text"], top_k=None)}
        assert row["mood"]["scores"] == pytest.approx([expected[label] for label in LABELS], abs=1e-5)
        assert row["mood"]["label"] == max(expected, key=lambda label: expected[label])
        chances = 1 / (1 + np.exp(-_logits(run, row["text"])))
        assert row["moods"]["scores"] == pytest.approx(chances, abs=1e-5)
        assert row["moods"]["labels"] == [label for label, chance in zip(LABELS, chances, strict=True) if chance >= 0.4]


def _logits(run: transformers.Pipeline, text: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = {entry["label"]: entry["score"] for entry in run(text, top_k=None, function_to_apply="none")}
    return np.array([found[label] for label in LABELS])


def test_a_setting_that_does_not_fit_the_model_is_named_before_the_work(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    write_corpus(tmp_path / "in", shards=1)
    model = tiny_task(tmp_path / "model", "SequenceClassification", num_labels=1, problem_type="regression")
    task = {"head": "sequence_classification", "model": str(model), "top_k": 2}
    refused = tidemill("plan", job(tasks={"stars": task}))
    assert refused.returncode == 2
    assert "tasks.stars" in refused.stderr
    assert "regression" in refused.stderr
