"""Labels equal transformers' text-classification pipeline on short texts, and plain loops over windows on long ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import transformers

from operators.heads.sequence_classification import Config, Head
from operators.models.layout import read_layout
from operators.segmentation import Windowing, segment
from tests.operators.heads.conftest import POOLINGS, Make, MakeLabeller
from tests.tiny import tiny_task

TEXTS = ["moon", "", "the king of the sea, and his ship", "river bank 7!", "snow on the tree"]
LONG = ["river " * 150, "the king of the sea and " * 40, "moon", ""]
LABELS = {0: "sad", 1: "glad", 2: "calm"}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny classifier."""

    def tiny(model_type: str = "bert", **config: Any) -> Path:
        options: dict[str, Any] = {"num_labels": 3, "id2label": LABELS} | config
        return tiny_task(tmp_path_factory.mktemp("classifier"), "SequenceClassification", model_type=model_type, **options)

    return tiny


@pytest.fixture(scope="module")
def model(make: Make) -> Path:
    """A BERT of three labels."""
    return make()


def pipeline(path: Path, texts: list[str], labels: list[str]) -> list[list[float]]:
    """Scores of the reference, in the order of the labels."""
    run = transformers.pipeline("text-classification", model=str(path), device="cpu")
    found = [{entry["label"]: entry["score"] for entry in run(text, top_k=None)} for text in texts]
    return [[entries[label] for label in labels] for entries in found]


def window_logits(path: Path, text: str) -> npt.NDArray[np.float64]:
    """float64 [windows, labels]: the reference's logits of each of a text's windows, cut by hand."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    reference: Any = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    cut = segment(np.array([len(ids)]), Windowing(62, 15))
    rows = []
    for start, length in zip(cut.start, cut.length, strict=True):
        framed = [tokenizer.cls_token_id, *ids[start : start + length], tokenizer.sep_token_id]
        with torch.inference_mode():
            rows.append(reference(input_ids=torch.tensor([framed])).logits[0].double().numpy())
    return np.stack(rows)


def owned(path: Path, text: str) -> npt.NDArray[np.int64]:
    """How many tokens each window owns."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    count = len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
    return segment(np.array([count]), Windowing(62, 15)).owned


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis."""
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float64)


@pytest.mark.parametrize(("model_type", "config"), POOLINGS)
def test_each_family_scores_as_the_pipeline(
    make: Make, make_labeller: MakeLabeller, model_type: str, config: dict[str, str]
) -> None:
    path = make(model_type, **config)
    found = make_labeller(path, "sequence_classification")(TEXTS)
    expected = pipeline(path, TEXTS, list(LABELS.values()))
    np.testing.assert_allclose([row["scores"] for row in found], expected, rtol=0, atol=1e-5)
    assert [row["label"] for row in found] == [LABELS[int(np.argmax(scores))] for scores in expected]
    assert [row["score"] for row in found] == [max(row["scores"]) for row in found]


@pytest.mark.parametrize(
    "config",
    [
        {"problem_type": "regression", "num_labels": 1, "id2label": {0: "stars"}},
        {"problem_type": "regression"},
        {"num_labels": 1, "id2label": {0: "spam"}},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "multi_label_classification", "num_labels": 1, "id2label": {0: "spam"}},
    ],
)
def test_each_problem_type_scores_as_the_pipeline(make: Make, make_labeller: MakeLabeller, config: dict[str, Any]) -> None:
    path = make(**config)
    labels = list(config.get("id2label", LABELS).values())
    found = make_labeller(path, "sequence_classification")(TEXTS)
    expected = np.array(pipeline(path, TEXTS, labels))
    np.testing.assert_allclose([row["scores"] for row in found], expected, rtol=0, atol=1e-5)
    if config.get("problem_type") == "regression":
        assert {row["label"] for row in found} == {None}
        wanted = expected[:, 0] if len(labels) == 1 else [None] * len(TEXTS)
        assert [row["score"] for row in found] == pytest.approx(list(wanted), abs=1e-5)
    elif config.get("problem_type") == "multi_label_classification":
        above = [[label for label, score in zip(labels, row, strict=True) if score >= 0.5] for row in expected]
        assert [row["labels"] for row in found] == above
    else:
        assert {row["label"] for row in found} == {"spam"}


@pytest.mark.parametrize("aggregate", ["mean", "max", "noisy_or", "first"])
def test_long_documents_equal_a_loop_over_the_reference(model: Path, make_labeller: MakeLabeller, aggregate: str) -> None:
    found = make_labeller(model, "sequence_classification", aggregate=aggregate)(LONG)
    for text, row in zip(LONG, found, strict=True):
        logits = window_logits(model, text)
        weights = np.maximum(owned(model, text), 1)
        expected = {
            "mean": softmax(np.average(logits, axis=0, weights=weights)),
            "max": softmax(logits).max(axis=0),
            "noisy_or": 1 - np.prod(1 - softmax(logits), axis=0),
            "first": softmax(logits[0]),
        }[aggregate]
        np.testing.assert_allclose(row["scores"], expected, rtol=0, atol=1e-5)
        assert row["label"] == LABELS[int(expected.argmax())]
    assert len(window_logits(model, LONG[0])) > 2


def test_none_is_a_list_of_windows_with_their_spans(model: Path, make_labeller: MakeLabeller) -> None:
    found = make_labeller(model, "sequence_classification", aggregate="none", top_k=1)(LONG)
    for text, windows in zip(LONG, found, strict=True):
        np.testing.assert_allclose([w["scores"] for w in windows], softmax(window_logits(model, text)), rtol=0, atol=1e-5)
        assert (windows[0]["start"], windows[-1]["end"]) == (0, len(text.rstrip()))
        assert all(later["start"] < earlier["end"] for earlier, later in pairwise(windows))
        assert all(w["top"][0] == {"label": w["label"], "score": w["score"]} for w in windows)


def test_top_k_ranks_all_labels_and_leaves_the_scores_in_the_models_order(model: Path, make_labeller: MakeLabeller) -> None:
    plain = make_labeller(model, "sequence_classification")(TEXTS)
    for top_k in (1, 2, 9):
        for row, without in zip(make_labeller(model, "sequence_classification", top_k=top_k)(TEXTS), plain, strict=True):
            ranked = sorted(zip(LABELS.values(), row["scores"], strict=True), key=lambda pair: -pair[1])
            assert row.pop("top") == [{"label": label, "score": score} for label, score in ranked[:top_k]]
            assert row == without


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_threshold_says_which_of_several_labels_a_document_has(
    model: Path, make_labeller: MakeLabeller, threshold: float
) -> None:
    found = make_labeller(model, "sequence_classification", multi_label=True, threshold=threshold, top_k=3)(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        expected = 1 / (1 + np.exp(-window_logits(model, text)[0]))
        np.testing.assert_allclose(row["scores"], expected, rtol=0, atol=1e-5)
        assert row["labels"] == [LABELS[i] for i in range(3) if expected[i] >= threshold]
        assert len(row["top"]) == 3


def test_one_label_of_a_model_that_was_made_for_several(make: Make, make_labeller: MakeLabeller) -> None:
    path = make(problem_type="multi_label_classification")
    found = make_labeller(path, "sequence_classification", multi_label=False)(TEXTS)
    assert [sum(row["scores"]) for row in found] == pytest.approx([1.0] * len(TEXTS), abs=1e-6)
    assert {row["label"] for row in found} <= set(LABELS.values())


@pytest.mark.parametrize("settings", [{"multi_label": True}, {"top_k": 2}, {"aggregate": "noisy_or"}])
def test_settings_for_labels_are_refused_for_a_regression(make: Make, settings: dict[str, Any]) -> None:
    layout = read_layout(make(problem_type="regression"))
    with pytest.raises(ValueError, match=next(iter(settings)) + ".* regression"):
        Head(Config(**settings), layout)


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tiny_task(tmp_path, "TokenClassification", num_labels=3)
    with pytest.raises(ValueError, match="BertForTokenClassification; this head needs a model for SequenceClassification"):
        Head(Config(), read_layout(path))


def test_documents_that_fail_leave_the_others_alone(model: Path, make_labeller: MakeLabeller) -> None:
    for aggregate in ("mean", "max", "noisy_or", "first", "none"):
        labeller = make_labeller(model, "sequence_classification", aggregate=aggregate, policy="error")
        encoded = labeller.encode(["moon", "river " * 150, "star"])
        assert {row: failure.reason for row, failure in encoded.failed.items()} == {1: "too_long"}
        values = encoded.values["task"].to_pylist()
        assert [values[0], values[2]] == labeller(["moon", "star"])


@pytest.mark.parametrize("aggregate", ["mean", "none"])
def test_similarity_is_the_share_of_labels_that_agree(make: Make, aggregate: str) -> None:
    def column(head: Head, rows: list[list[float]], **label: Any) -> pa.Array:
        values = [{"start": 0, "end": 0} | label | {"scores": scores} for scores in rows]
        plain = [
            {key: value for key, value in row.items() if aggregate == "none" or key not in ("start", "end")} for row in values
        ]
        return pa.array([[row] for row in plain] if aggregate == "none" else plain, head.type)

    one = Head(Config(aggregate=aggregate), read_layout(make()))  # type: ignore[arg-type]
    mine, theirs = column(one, [[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]]), column(one, [[0.4, 0.35, 0.25], [0.3, 0.4, 0.3]])
    assert one.similarity(mine, theirs).tolist() == [1, 0]
    several = Head(Config(aggregate=aggregate, multi_label=True), read_layout(make()))  # type: ignore[arg-type]
    mine, theirs = column(several, [[0.6, 0.4, 0.6], [0.6, 0.4, 0.6]]), column(several, [[0.7, 0.1, 0.5], [0.6, 0.4, 0.4]])
    assert several.similarity(mine, theirs).tolist() == [1, 0]
    value = Head(Config(aggregate=aggregate), read_layout(make(problem_type="regression", num_labels=1, id2label={0: "s"})))  # type: ignore[arg-type]
    found = value.similarity(column(value, [[4.5], [1.5]]), column(value, [[4.0], [6.0]]))
    assert found.tolist() == pytest.approx([1 - 0.125**2 / 2, 1 - 0.75**2 / 2])


def test_similarity_of_windows_is_their_mean(model: Path, make_labeller: MakeLabeller) -> None:
    labeller = make_labeller(model, "sequence_classification", aggregate="none")
    values = labeller.encode(LONG).values["task"]
    assert labeller.head.similarity(values, values).tolist() == [1] * len(LONG)
    rows = values.to_pylist()
    rows[0][0]["scores"] = [-score for score in rows[0][0]["scores"]]
    changed = labeller.head.similarity(values, pa.array(rows, values.type))
    assert changed[0] == pytest.approx(1 - 1 / len(rows[0]))
    assert labeller.head.similarity(values[:0], values[:0]).tolist() == []
