"""Entities as a whole job: types as promised, short and long documents, bad rows in quarantine."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import pipeline

from pipeline import open_output
from tests.tiny import WORDS, tiny_task

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
ENTITIES = pa.list_(
    pa.struct(
        [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("score", pa.float32()), ("text", pa.string())]
    )
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of windows of 32 tokens."""
    return tiny_task(tmp_path_factory.mktemp("model"), "TokenClassification", max_positions=32, id2label=LABELS)


def test_entities_of_a_corpus(
    tmp_path: Path, model: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rng = random.Random(0)
    texts = ["", *(" ".join(rng.choices(WORDS, k=k)) for k in (1, 25, 29, 31, 200)), "\u4eba, don't\U0001f600 river"]
    rows: list[dict[str, Any]] = [{"doc": f"d{i}", "lang": "en", "text": text} for i, text in enumerate(texts)]
    rows.insert(3, {"doc": "bad", "lang": "en", "text": None})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"head": "token_classification", "model": str(model)}
    tasks = {
        "entities": task,
        "sure": {**task, "threshold": 0.5},
        "tokens": {**task, "strategy": "none"},
        "like_hf": {**task, "merge": "hf"},
    }
    process = tidemill("run", job(tasks=tasks), "--json")
    assert process.returncode == 0, process.stderr[-3000:]
    books = json.loads(process.stdout)["books"]
    assert (books["rows_out"], books["quarantined"]) == (len(texts), {"null_text": 1})

    table = open_output(str(tmp_path / "out")).to_table()
    assert all(table.schema.field(name).type == ENTITIES for name in tasks)
    found = {row["id"]: row for row in table.to_pylist()}
    assert all(e["text"] == texts[i][e["start"] : e["end"]] for i in range(len(texts)) for e in found[f"d{i}"]["entities"])
    assert found["d0"]["entities"] == []
    assert (found["d5"]["n_segments"], len(found["d5"]["entities"]) > 10) == (9, True)
    for row in found.values():
        assert row["sure"] == [e for e in row["entities"] if e["score"] >= 0.5]

    tag = pipeline("token-classification", model=str(model), device="cpu", aggregation_strategy="first")
    for name, stride, documents in (("entities", None, range(4)), ("like_hf", 6, range(6))):
        for i in documents:
            theirs = tag(texts[i], **({} if stride is None else {"stride": stride}))
            expected = [(e["start"], e["end"], e["entity_group"], pytest.approx(e["score"], abs=1e-5)) for e in theirs]
            assert [(e["start"], e["end"], e["label"], e["score"]) for e in found[f"d{i}"][name]] == expected


def test_a_model_of_another_task_is_exit_2(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text('{"text": "a"}\n')
    other = tiny_task(tmp_path / "model", "SequenceClassification")
    process = tidemill(
        "run", job(input={"id": None, "keep": []}, tasks={"e": {"head": "token_classification", "model": str(other)}})
    )
    assert process.returncode == 2
    assert "this head needs a model for TokenClassification" in process.stderr
