"""Zero-shot labels equal transformers' pipeline on short texts, and are found wherever in a long document they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from pydantic import ValidationError

from operators.heads.zero_shot import Config, Head
from operators.models.layout import read_layout
from tests.operators.heads.conftest import POOLINGS, Make, MakeLabeller
from tests.tiny import tiny_task

TEXTS = ["moon and star", "the king of the sea, and his ship", "river bank 7!"]
LABELS = ["war", "a song", "light", "sea"]
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a tiny model of natural language inference."""

    def tiny(model_type: str = "bert", **config: Any) -> Path:
        options: dict[str, Any] = {"num_labels": 3, "id2label": NLI} | config
        options["label2id"] = {label: number for number, label in options["id2label"].items()}
        return tiny_task(tmp_path_factory.mktemp("nli"), "SequenceClassification", model_type=model_type, **options)

    return tiny


@pytest.fixture(scope="module")
def model(make: Make) -> Path:
    """A BERT of natural language inference."""
    return make()


@pytest.fixture(scope="module")
def matcher(make_matcher: Make) -> Path:
    """A model that entails what it has read."""
    return make_matcher("SequenceClassification", (-8.0, 0.0, 8.0))


def pipeline(path: Path, texts: list[str], labels: list[str], **options: Any) -> list[list[float]]:
    """Scores of the reference, in the order of the labels."""
    run = transformers.pipeline("zero-shot-classification", model=str(path), device="cpu")
    found = [run(text, candidate_labels=labels, **options) for text in texts]
    return [[dict(zip(f["labels"], f["scores"], strict=True))[label] for label in labels] for f in found]


@pytest.mark.parametrize(("model_type", "config"), POOLINGS)
def test_each_family_scores_as_the_pipeline(
    make: Make, make_labeller: MakeLabeller, model_type: str, config: dict[str, str]
) -> None:
    path = make(model_type, **config)
    found = make_labeller(path, "zero_shot", labels=LABELS)(TEXTS)
    expected = pipeline(path, TEXTS, LABELS)
    np.testing.assert_allclose([row["scores"] for row in found], expected, rtol=0, atol=1e-5)
    assert [row["label"] for row in found] == [LABELS[int(np.argmax(scores))] for scores in expected]


@pytest.mark.parametrize(
    "names", [NLI, {0: "ENTAILMENT", 1: "not_entailment"}, {0: "entailment", 1: "neutral", 2: "contradiction"}]
)
@pytest.mark.parametrize(("labels", "multi_label"), [(LABELS, False), (LABELS, True), (["war"], False), (["war"], True)])
def test_each_kind_scores_as_the_pipeline(
    make: Make, make_labeller: MakeLabeller, names: dict[int, str], labels: list[str], multi_label: bool
) -> None:
    path = make(id2label=names, num_labels=len(names))
    template = "{} is the light of this."
    labeller = make_labeller(path, "zero_shot", labels=labels, multi_label=multi_label, template=template, aggregate="mean")
    found = labeller(TEXTS)
    expected = pipeline(path, TEXTS, labels, multi_label=multi_label, hypothesis_template=template)
    np.testing.assert_allclose([row["scores"] for row in found], expected, rtol=0, atol=1e-5)
    if multi_label:
        reached = [[label for label, score in zip(labels, row, strict=True) if score >= 0.5] for row in expected]
        assert [row["labels"] for row in found] == reached
    else:
        assert [row["score"] for row in found] == [max(row["scores"]) for row in found]


@pytest.mark.parametrize("aggregate", ["max", "mean"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_label_that_is_only_in_the_last_window_is_found(
    matcher: Path, make_labeller: MakeLabeller, long_document: Callable[[str], str], aggregate: str, multi_label: bool
) -> None:
    topics = ["king", "music", "river", "star"]
    documents = [long_document(topic) for topic in topics]
    settings = {"labels": topics, "multi_label": multi_label, "aggregate": aggregate, "template": "This is {}."}
    found = make_labeller(matcher, "zero_shot", **settings)(documents)
    if multi_label and aggregate == "max":
        assert [row["labels"] for row in found] == [[topic] for topic in topics]
    scores = np.array([row["scores"] for row in found])
    assert (scores.argmax(axis=1) == np.arange(4)).all()
    if aggregate == "max":
        assert (np.diagonal(scores) > 0.99).all()

    cut = make_labeller(matcher, "zero_shot", policy="truncate", **settings)(documents)
    assert len({tuple(row["scores"]) for row in cut}) == 1  # the first window alone says the same of all of them
    reference = transformers.pipeline("zero-shot-classification", model=str(matcher), device="cpu")
    wrong = [reference(d, candidate_labels=topics, multi_label=multi_label, hypothesis_template="This is {}.") for d in documents]
    assert max(w["scores"][0] - w["scores"][-1] for w in wrong) < 1e-6


def test_max_and_mean_equal_a_loop_over_the_reference(model: Path, make_labeller: MakeLabeller) -> None:
    text = "the king of the sea and his ship in the storm " * 9
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    reference: Any = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    hypotheses = [tokenizer(f"the {label}", add_special_tokens=False)["input_ids"] for label in LABELS]
    assert [len(h) for h in hypotheses] == [2, 3, 2, 2]
    # Windows of 64 leave 58 beside 3 special tokens and the longest hypothesis; 99 tokens are two of 57 with 15 in common.
    windows, weights = [ids[:57], ids[42:]], [50, 49]
    assert len(ids) == 99
    logits = np.empty((2, len(LABELS), 3))
    for i, window in enumerate(windows):
        for j, hypothesis in enumerate(hypotheses):
            framed = [tokenizer.cls_token_id, *window, tokenizer.sep_token_id, *hypothesis, tokenizer.sep_token_id]
            types = [0] * (len(window) + 2) + [1] * (len(hypothesis) + 1)
            with torch.inference_mode():
                output = reference(input_ids=torch.tensor([framed]), token_type_ids=torch.tensor([types]))
            logits[i, j] = output.logits[0]
    for aggregate, multi_label in ((a, m) for a in ("max", "mean") for m in (False, True)):
        evidence = logits[..., 2] - logits[..., 0] * multi_label
        whole = evidence.max(axis=0) if aggregate == "max" else np.average(evidence, axis=0, weights=weights)
        expected = 1 / (1 + np.exp(-whole)) if multi_label else np.exp(whole) / np.exp(whole).sum()
        settings = {"labels": LABELS, "template": "the {}", "aggregate": aggregate, "multi_label": multi_label}
        found = make_labeller(model, "zero_shot", **settings)([text])
        np.testing.assert_allclose(found[0]["scores"], expected, rtol=0, atol=1e-5)


def test_threshold_says_which_labels_a_document_has(model: Path, make_labeller: MakeLabeller) -> None:
    everything = make_labeller(model, "zero_shot", labels=LABELS, multi_label=True, threshold=0)(TEXTS)
    assert all(row["labels"] == LABELS for row in everything)
    nothing = make_labeller(model, "zero_shot", labels=LABELS, multi_label=True, threshold=1)(TEXTS)
    assert all(row["labels"] == [] for row in nothing)
    assert [row["scores"] for row in everything] == [row["scores"] for row in nothing]


def test_documents_that_fail_leave_the_others_alone(model: Path, make_labeller: MakeLabeller) -> None:
    labeller = make_labeller(model, "zero_shot", labels=LABELS, policy="error")
    encoded = labeller.encode(["moon", "river " * 150, "", "star"])
    assert {row: failure.reason for row, failure in encoded.failed.items()} == {1: "too_long"}
    values = encoded.values["task"].to_pylist()
    assert [values[0], *values[2:]] == labeller(["moon", "", "star"])
    assert labeller([]) == []


@pytest.mark.parametrize("names", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "entailment"}])
def test_a_model_without_entailment_is_refused_with_its_labels(make: Make, names: dict[int, str]) -> None:
    layout = read_layout(make(id2label=names, num_labels=len(names)))
    with pytest.raises(ValueError, match=f"labels are {', '.join(names.values())}; .* 'entail'"):
        Head(Config(labels=("war",)), layout)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "labels"),
        ({"labels": []}, "at least 1"),
        ({"labels": ["war", "war"]}, "war is listed more than once"),
        ({"labels": ["war"], "template": "This is war."}, "once"),
        ({"labels": ["war"], "template": "{} or {}"}, "once"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Config(**settings)


def test_similarity_is_whether_the_labels_agree(model: Path) -> None:
    layout = read_layout(model)
    one = Head(Config(labels=("a", "b")), layout)
    values = pa.array([{"scores": [0.6, 0.4]}, {"scores": [0.6, 0.4]}], one.type)
    assert one.similarity(values, pa.array([{"scores": [0.9, 0.1]}, {"scores": [0.4, 0.6]}], one.type)).tolist() == [1, 0]
    several = Head(Config(labels=("a", "b"), multi_label=True, threshold=0.7), layout)
    values = pa.array([{"scores": [0.8, 0.4]}, {"scores": [0.8, 0.4]}], several.type)
    assert several.similarity(values, pa.array([{"scores": [0.9, 0.6]}, {"scores": [0.8, 0.9]}], several.type)).tolist() == [1, 0]
