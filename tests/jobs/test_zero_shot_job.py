"""A whole job that labels documents without a trained classifier."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import transformers

from pipeline import open_output
from tests.jobs.conftest import write_corpus
from tests.tiny import tiny_task

NAMES = {0: "contradiction", 1: "neutral", 2: "entailment"}
LABELS = ["war", "music", "science"]
ONE = pa.struct([("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])
SEVERAL = pa.struct([("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])


def test_a_corpus_is_labelled_in_one_pass_for_two_tasks(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rows = write_corpus(tmp_path / "in", shards=2)
    label2id = {name: number for number, name in NAMES.items()}
    model = tiny_task(tmp_path / "model", "SequenceClassification", num_labels=3, id2label=NAMES, label2id=label2id)
    task = {"head": "zero_shot", "model": str(model), "labels": LABELS, "template": "about {}."}
    tasks = {"topic": task, "topics": {**task, "multi_label": True}}
    done = tidemill("run", job(tasks=tasks, input={"keep": {"text": "string"}}), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["books"]["rows_out"] == rows

    table = open_output(str(tmp_path / "out")).to_table()
    assert [table.schema.field(name).type for name in tasks] == [ONE, SEVERAL]
    assert "topics_n_tokens" not in table.column_names  # both tasks read the same windows
    mine = table.to_pylist()
    assert max(row["n_segments"] for row in mine) > 2
    run = transformers.pipeline("zero-shot-classification", model=str(model), device="cpu")
    for row in [row for row in mine if row["n_segments"] == 1 and row["text"]][:2]:
        for multi, name in enumerate(tasks):
            found = run(row["text"], candidate_labels=LABELS, hypothesis_template="about {}.", multi_label=bool(multi))
            expected = dict(zip(found["labels"], found["scores"], strict=True))
            assert row[name]["scores"] == pytest.approx([expected[label] for label in LABELS], abs=1e-5)


def test_hypotheses_that_leave_no_room_are_refused_before_the_work(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    write_corpus(tmp_path / "in", shards=1)
    model = tiny_task(tmp_path / "model", "SequenceClassification", num_labels=3, id2label=NAMES)
    task = {"head": "zero_shot", "model": str(model), "labels": ["war", "very " * 60]}
    refused = tidemill("plan", job(tasks={"topic": task}))
    assert refused.returncode == 2
    assert "no room beside" in refused.stderr
