"""Choices equal transformers' model on short texts, and are found wherever in a long document what decides them is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import transformers

from operators.heads.multiple_choice import Config, Head
from operators.inputs import Companions, Tokens, make_inputs
from operators.models.layout import read_layout
from operators.segmentation import Windowing
from tests.operators.heads.conftest import POOLINGS, Make, MakeLabeller
from tests.tiny import tiny_encoder, tiny_task

TEXTS = ["moon and star", "the king of the sea, and his ship", "river bank 7!", ""]
CHOICES = [["the sea", "war", "a song of light"], ["king", "queen"], ["rain"], ["dog", "", "cat", "bird fish"]]
FAMILIES = [pooling for pooling in POOLINGS if pooling[0] != "deberta"]
"""transformers has no multiple choice model for DeBERTa v1."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a tiny model of multiple choice."""

    def tiny(model_type: str = "bert", **config: Any) -> Path:
        return tiny_task(tmp_path_factory.mktemp("choice"), "MultipleChoice", model_type=model_type, **config)

    return tiny


@pytest.fixture(scope="module")
def model(make: Make) -> Path:
    """A BERT of multiple choice."""
    return make()


def reference(path: Path, text: str, choices: list[str]) -> npt.NDArray[np.float64]:
    """float64 [choices]: logits."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModelForMultipleChoice.from_pretrained(path).eval()
    encoded = tokenizer([text] * len(choices), choices, padding=True, truncation="only_first", return_tensors="pt")
    with torch.inference_mode():
        logits: npt.NDArray[np.float64] = model(**{k: v[None] for k, v in encoded.items()}).logits[0].double().numpy()
    return logits


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over all."""
    return np.asarray(np.exp(logits) / np.exp(logits).sum(), np.float64)


@pytest.mark.parametrize(("model_type", "config"), FAMILIES)
def test_each_family_chooses_as_transformers(
    make: Make, make_labeller: MakeLabeller, model_type: str, config: dict[str, str]
) -> None:
    path = make(model_type, **config)
    found = make_labeller(path, "multiple_choice", choices="options")(TEXTS, CHOICES)
    for text, choices, row in zip(TEXTS, CHOICES, found, strict=True):
        expected = softmax(reference(path, text, choices))
        np.testing.assert_allclose(row["scores"], expected, rtol=0, atol=1e-5)
        assert (row["choice"], row["score"]) == (int(expected.argmax()), max(row["scores"]))


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_an_answer_that_is_only_in_the_last_window_is_found(
    make_matcher: Make, make_labeller: MakeLabeller, long_document: Callable[[str], str], aggregate: str
) -> None:
    path = make_matcher("MultipleChoice", (8.0,))
    documents = [long_document(word) for word in ("river", "king", "star")]
    choices = [["the king", "the river"], ["music", "engine", "king"], ["river", "music", "king", "star", "engine"]]
    right = [1, 2, 3]
    found = make_labeller(path, "multiple_choice", choices="options", aggregate=aggregate)(documents, choices)
    assert [row["choice"] for row in found] == right
    assert min(row["score"] for row in found) > (0.99 if aggregate == "max" else 0.5)
    cut = make_labeller(path, "multiple_choice", choices="options", policy="truncate")(documents, choices)
    assert [row["score"] for row in cut] == pytest.approx([1 / 2, 1 / 3, 1 / 5], abs=1e-6)  # a guess
    spread = [np.ptp(reference(path, text, options)) for text, options in zip(documents, choices, strict=True)]
    assert max(spread) < 1e-5  # transformers cuts the text, and all choices are alike to it


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_long_texts_equal_a_loop_over_the_reference(model: Path, make_labeller: MakeLabeller, aggregate: str) -> None:
    text = " ".join(["the king of the sea and his ship in the storm"] * 9)
    choices = ["moon star", "king", "light"]
    # Windows of 64 leave 59 beside 3 special tokens and the longest choice; 99 tokens are two of 57 with 15 in common.
    words = text.split()
    logits = np.stack([reference(model, " ".join(part), choices) for part in (words[:57], words[42:])])
    assert len(words) == 99
    expected = softmax(logits.max(axis=0) if aggregate == "max" else np.average(logits, axis=0, weights=[50, 49]))
    found = make_labeller(model, "multiple_choice", choices="options", aggregate=aggregate)([text], [choices])
    np.testing.assert_allclose(found[0]["scores"], expected, rtol=0, atol=1e-5)


def test_of_equal_choices_the_first_is_taken(model: Path) -> None:
    head = Head(Config(choices="options"), read_layout(model))
    one_token_each = np.zeros(4, np.int32), np.arange(5)
    companions = Companions(np.array([0, 1, 1, 1]), *one_token_each)
    inputs = make_inputs(Tokens(one_token_each[0][:2], one_token_each[1][:3]), Windowing(9, 0), companions)
    found = head.finish(np.array([[3], [-200], [1], [1]], np.float32), inputs)
    assert found.type == head.type
    assert found.to_pylist() == [{"choice": 0, "score": 1, "scores": [1]}, {"choice": 1, "score": 0.5, "scores": [0, 0.5, 0.5]}]


def test_documents_that_fail_leave_the_others_alone(model: Path, make_labeller: MakeLabeller) -> None:
    labeller = make_labeller(model, "multiple_choice", choices="options")
    encoded = labeller.encode(["moon", "river", "star"], [["sea", "sun"], ["sun", "rain " * 80, "sea"], ["king", "queen"]])
    assert {row: failure.reason for row, failure in encoded.failed.items()} == {1: "too_long"}
    values = encoded.values["task"].to_pylist()
    assert [values[0], values[2]] == labeller(["moon", "star"], [["sea", "sun"], ["king", "queen"]])
    assert labeller([], []) == []


def test_a_family_without_multiple_choice_is_refused(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path, model_type="deberta")
    with pytest.raises(ValueError, match="no multiple choice for the family deberta"):
        Head(Config(choices="options"), read_layout(path))


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tiny_task(tmp_path, "SequenceClassification", num_labels=1)
    with pytest.raises(ValueError, match="needs a model for MultipleChoice"):
        Head(Config(choices="options"), read_layout(path))


def test_a_summary_of_other_than_the_first_token_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="summary_type is mean"):
        Head(Config(choices="options"), read_layout(make("electra", summary_type="mean")))


def test_similarity_is_whether_the_choices_agree(model: Path) -> None:
    head = Head(Config(choices="options"), read_layout(model))
    mine = pa.array([{"choice": 1}, {"choice": 2}], head.type)
    assert head.similarity(mine, pa.array([{"choice": 1}, {"choice": 0}], head.type)).tolist() == [1, 0]
    assert dict(head.columns) == {"options": pa.list_(pa.string())}
