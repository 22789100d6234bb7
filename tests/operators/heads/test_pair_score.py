"""Scores of pairs equal sentence-transformers' CrossEncoder on short pairs, and a loop over it on long ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import CrossEncoder

from operators.heads.pair_score import Config, Head
from operators.models.layout import read_layout
from tests.operators.heads.conftest import POOLINGS, Make, MakeLabeller
from tests.tiny import tiny_task

PAIRS = [("moon and star", "the sea"), ("the king of the sea, and his ship", "king"), ("river bank 7!", ""), ("", "rain")]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a tiny cross-encoder."""

    def tiny(model_type: str = "bert", **config: Any) -> Path:
        directory = tmp_path_factory.mktemp("cross")
        return tiny_task(directory, "SequenceClassification", model_type=model_type, **({"num_labels": 1} | config))

    return tiny


@pytest.fixture(scope="module")
def model(make: Make) -> Path:
    """A BERT that scores pairs."""
    return make()


def reference(path: Path, pairs: list[tuple[str, str]], **options: Any) -> npt.NDArray[np.float32]:
    """float32 [pairs]"""
    scores: npt.NDArray[np.float32] = CrossEncoder(str(path), device="cpu").predict(pairs, show_progress_bar=False, **options)
    return scores


def score(labeller: Any, pairs: list[tuple[str, str]]) -> list[float]:
    """What the head makes of pairs."""
    scores: list[float] = labeller([text for text, _ in pairs], [[pair] for _, pair in pairs])
    return scores


@pytest.mark.parametrize(("model_type", "config"), POOLINGS)
def test_each_family_scores_as_the_cross_encoder(
    make: Make, make_labeller: MakeLabeller, model_type: str, config: dict[str, str]
) -> None:
    path = make(model_type, **config)
    found = score(make_labeller(path, "pair_score", text_pair="other"), PAIRS)
    np.testing.assert_allclose(found, reference(path, PAIRS), rtol=0, atol=1e-5)
    assert len(set(found)) == len(PAIRS)


def test_the_second_text_may_come_first(model: Path, make_labeller: MakeLabeller) -> None:
    found = score(make_labeller(model, "pair_score", text_pair="query", order="pair_first"), PAIRS)
    np.testing.assert_allclose(found, reference(model, [(pair, text) for text, pair in PAIRS]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_the_activation_is_the_one_that_the_models_files_name(
    make: Make, make_labeller: MakeLabeller, saved: dict[str, Any]
) -> None:
    path = make(**saved)
    found = score(make_labeller(path, "pair_score", text_pair="other"), PAIRS)
    np.testing.assert_allclose(found, reference(path, PAIRS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()])
def test_a_model_that_cross_encoder_saved(model: Path, make_labeller: MakeLabeller, tmp_path: Path, activation: Any) -> None:
    CrossEncoder(str(model), device="cpu", activation_fn=activation).save_pretrained(str(tmp_path))
    found = score(make_labeller(tmp_path, "pair_score", text_pair="other"), PAIRS)
    np.testing.assert_allclose(found, reference(tmp_path, PAIRS), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, reference(model, PAIRS, activation_fn=activation), rtol=0, atol=1e-5)


def test_the_activation_of_the_settings_wins(model: Path, make_labeller: MakeLabeller) -> None:
    found = score(make_labeller(model, "pair_score", text_pair="other", activation="identity"), PAIRS)
    expected = reference(model, PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.Tanh", "my.own.Sigmoid"])
def test_another_activation_is_refused_by_name_unless_the_settings_choose(make: Make, name: str) -> None:
    layout = read_layout(make(sentence_transformers={"activation_fn": name}))
    with pytest.raises(ValueError, match=f"activation {name}; set `activation`"):
        Head(Config(text_pair="other"), layout)
    assert Head(Config(text_pair="other", activation="sigmoid"), layout).type == pa.float32()


@pytest.mark.parametrize("aggregate", ["max", "mean", "first"])
@pytest.mark.parametrize("order", ["text_first", "pair_first"])
def test_long_texts_equal_a_loop_over_the_cross_encoder(
    model: Path, make_labeller: MakeLabeller, aggregate: str, order: str
) -> None:
    text = " ".join(["the king of the sea and his ship in the storm"] * 9)
    # Windows of 64 leave 59 beside 3 special tokens and 2 of the pair; 99 tokens are two of 57 with 15 in common.
    words = text.split()
    windows = [" ".join(words[:57]), " ".join(words[42:])]
    assert len(words) == 99
    pairs = [(w, "moon star") if order == "text_first" else ("moon star", w) for w in windows]
    logits = reference(model, pairs, activation_fn=torch.nn.Identity())
    expected = {"max": logits.max(), "mean": np.average(logits, weights=[50, 49]), "first": logits[0]}[aggregate]
    labeller = make_labeller(model, "pair_score", text_pair="other", aggregate=aggregate, order=order)
    assert score(labeller, [(text, "moon star")]) == pytest.approx([1 / (1 + np.exp(-expected))], abs=1e-5)


def test_a_pair_that_matches_only_in_the_last_window_is_found(
    make_matcher: Make, make_labeller: MakeLabeller, long_document: Callable[[str], str]
) -> None:
    path = make_matcher("SequenceClassification", (8.0,))
    pairs = [(long_document("river"), query) for query in ("king", "river")]
    whole = make_labeller(path, "pair_score", text_pair="query", order="pair_first")
    assert score(whole, pairs) == pytest.approx([0.0, 1.0], abs=1e-3)
    cut = make_labeller(path, "pair_score", text_pair="query", order="pair_first", policy="truncate")
    assert score(cut, pairs) == pytest.approx([0.0, 0.0], abs=1e-3)
    assert reference(path, [(query, text) for text, query in pairs]).tolist() == pytest.approx([0.0, 0.0], abs=1e-3)


def test_documents_that_fail_leave_the_others_alone(model: Path, make_labeller: MakeLabeller) -> None:
    labeller = make_labeller(model, "pair_score", text_pair="other")
    encoded = labeller.encode(["moon", "river", "star"], [["sea"], ["rain " * 80], ["sun"]])
    assert {row: failure.reason for row, failure in encoded.failed.items()} == {1: "too_long"}
    values = encoded.values["task"].to_pylist()
    assert [values[0], values[2]] == score(labeller, [("moon", "sea"), ("star", "sun")])
    assert score(labeller, []) == []


def test_a_model_of_several_logits_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="3 logits"):
        Head(Config(text_pair="other"), read_layout(make(num_labels=3)))


def test_the_column_of_second_texts_must_be_named(model: Path) -> None:
    with pytest.raises(ValidationError, match="text_pair"):
        Config()  # type: ignore[call-arg]
    head = Head(Config(text_pair="query"), read_layout(model))
    assert dict(head.columns) == {"query": pa.string()}


def test_similarity_falls_with_the_square_of_the_difference(model: Path) -> None:
    head = Head(Config(text_pair="other"), read_layout(model))
    values, other = pa.array([0.5, 4.0], pa.float32()), pa.array([0.25, 9.0], pa.float32())
    assert head.similarity(values, other).tolist() == pytest.approx([1 - 0.25**2 / 2, 1 - (5 / 9) ** 2 / 2])
