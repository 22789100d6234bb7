"""A task's head on vectors that we hand it gives exactly what transformers' whole model gives, for every family and task."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from operators.models import task as task_module
from operators.models.layout import read_layout
from operators.models.task import TaskModel, read_task
from tests.tiny import MODEL_TYPES, tiny_bert, tiny_task

TASKS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM", "MultipleChoice")
IDS = torch.tensor([[5, 7, 8, 9, 6], [5, 20, 21, 22, 6]])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("task", TASKS)
def test_logits_like_the_whole_model(task: str, model_type: str, tmp_path: Path) -> None:
    if (task, model_type) == ("MultipleChoice", "deberta"):
        pytest.skip("transformers has no DebertaForMultipleChoice")
    config = {"num_labels": 3} if task in ("SequenceClassification", "TokenClassification") else {}
    layout = read_layout(tiny_task(tmp_path, task, model_type=model_type, **config))
    whole: Any = getattr(transformers, f"AutoModelFor{task}").from_pretrained(tmp_path).eval()
    ours = TaskModel(layout, task, torch.device("cpu"))
    with torch.inference_mode():
        hidden = getattr(whole, whole.base_model_prefix)(IDS).last_hidden_state
        # Heads that read the first token alone are given no other.
        given = hidden[None, :, :1] if task == "MultipleChoice" else hidden[:, :1] if task == "SequenceClassification" else hidden
        theirs, found = whole(IDS[None] if task == "MultipleChoice" else IDS), ours(given)
    for name in ("start_logits", "end_logits") if task == "QuestionAnswering" else ("logits",):
        torch.testing.assert_close(found[name], theirs[name], rtol=0, atol=1e-5)
        assert found[name].std() > 0


def test_threads_get_what_they_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = TaskModel(
        read_layout(tiny_task(tmp_path, "TokenClassification", num_labels=3)), "TokenClassification", torch.device("cpu")
    )
    torch.manual_seed(0)
    given = torch.randn(2, 1, 5, 32)
    with torch.inference_mode():
        expected = [ours(hidden).logits for hidden in given]
    both, forward = threading.Barrier(2), task_module._Handed.forward

    def wait(self: Any, *arguments: Any, **named: Any) -> Any:
        both.wait(20)  # by now each thread has handed on its vectors
        return forward(self, *arguments, **named)

    monkeypatch.setattr(task_module._Handed, "forward", wait)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda hidden: ours(hidden).logits.detach(), given))
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    for logits, right in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, right, rtol=0, atol=1e-6)


def test_labels_in_the_order_of_their_ids(tmp_path: Path) -> None:
    names = {0: "a", 1: "b", 10: "k", **{i: str(i) for i in range(2, 10)}}
    layout = read_layout(tiny_task(tmp_path, "TokenClassification", num_labels=11, id2label=names))
    assert read_task(layout, "TokenClassification").labels == ("a", "b", *map(str, range(2, 10)), "k")


def test_a_model_of_another_task_is_refused_without_its_weights(tmp_path: Path) -> None:
    layout = read_layout(tiny_bert(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="architectures BertModel; this head needs a model for TokenClassification"):
        read_task(layout, "TokenClassification")


def test_labels_that_are_not_numbered_are_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_task(tmp_path, "TokenClassification", num_labels=2))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "2": "b"}}))
    with pytest.raises(ValueError, match="id2label must number its labels from 0"):
        read_task(layout, "TokenClassification")


def test_a_model_without_its_heads_weights_is_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_task(tmp_path, "TokenClassification", num_labels=2))
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"2 weights are missing or of another shape, the first is classifier\.bias"):
        TaskModel(layout, "TokenClassification", torch.device("cpu"))
