"""A whole job that chooses among texts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from pipeline import open_output
from tests.jobs.conftest import text
from tests.tiny import tiny_encoder, tiny_task

TYPE = pa.struct([("choice", pa.int32()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])


def test_choices_are_made_and_rows_without_choices_set_aside(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "in").mkdir()
    choices = [["river", "moon"], None, ["a", None], [], ["sea", "war of the king", "light"], ["rain"]]
    texts = [text(row, length) for row, length in enumerate([3, 3, 3, 3, 2, 150])]
    table = pa.table({"doc": [str(row) for row in range(6)], "text": texts, "options": pa.array(choices, pa.list_(pa.string()))})
    pq.write_table(table, tmp_path / "in" / "one.parquet")
    model = tiny_task(tmp_path / "model", "MultipleChoice")
    config = job(
        tasks={"answer": {"head": "multiple_choice", "model": str(model), "choices": "options"}},
        input={"keep": []},
    )
    done = tidemill("run", config, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["books"]["quarantined"] == {"bad_value": 3}

    found = open_output(str(tmp_path / "out")).to_table()
    assert found.schema.field("answer").type == TYPE
    assert found["id"].to_pylist() == ["0", "4", "5"]
    assert found["n_segments"].to_pylist()[2] > 2
    answers = found["answer"].to_pylist()
    for row, answer in zip((0, 4), answers, strict=False):
        expected = _reference(model, texts[row], choices[row] or [])
        assert answer["scores"] == pytest.approx(expected, abs=1e-5)
        assert answer["choice"] == expected.index(max(expected))
    assert answers[2] == {"choice": 0, "score": 1, "scores": [1]}


def _reference(path: Path, context: str, choices: list[Any]) -> list[float]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModelForMultipleChoice.from_pretrained(path).eval()
    encoded = tokenizer([context] * len(choices), choices, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores: list[float] = model(**{k: v[None] for k, v in encoded.items()}).logits[0].softmax(-1).tolist()
    return scores


def test_a_family_that_has_no_such_head_is_refused_before_the_work(
    tmp_path: Path, job: Callable[..., Path], tidemill: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["moon"], "options": [["a", "b"]]}), tmp_path / "in" / "one.parquet")
    model = tiny_encoder(tmp_path / "model", model_type="deberta")
    task = {"head": "multiple_choice", "model": str(model), "choices": "options"}
    refused = tidemill("plan", job(tasks={"answer": task}, input={"keep": [], "id": None}))
    assert refused.returncode == 2
    assert "no multiple choice for the family deberta" in refused.stderr
