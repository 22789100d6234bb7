"""Metrics against scikit-learn, SciPy and seqeval on random input, and against SQuAD's rules by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_scores
from sklearn import metrics as reference
from sklearn.preprocessing import MultiLabelBinarizer

from operators import metrics
from operators.metrics import Scores

LABELS = st.sampled_from(["a", "b", "ä", "国"])
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=12)
FIGURES = ("precision", "recall", "f1")


def strings(values: Any) -> pa.Array:
    return pa.array(values, pa.string())


def lists(values: Any) -> pa.Array:
    return pa.array(values, pa.list_(pa.string()))


def check_averages(scores: Scores, expected: dict[str, Any]) -> None:
    """`expected`: average -> (precision, recall, f1), and None -> the same as arrays over the labels, and their support."""
    for average, figures in expected.items():
        if average != "labels":
            assert [scores.overall[f"{average}_{name}"] for name in FIGURES] == pytest.approx(figures[:3])
    per_label = [[figures[name] for figures in scores.per_label.values()] for name in (*FIGURES, "support")]
    for ours, theirs in zip(per_label, expected["labels"], strict=True):
        assert ours == pytest.approx(list(theirs))


@given(PAIRS)
def test_classification_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    gold, predicted = zip(*pairs, strict=True)
    scores = metrics.classification(strings(gold), strings(predicted))
    averages = {"micro": "micro", "macro": "macro", "weighted": "weighted", "labels": None}
    expected = {
        name: reference.precision_recall_fscore_support(gold, predicted, average=average, zero_division=0)
        for name, average in averages.items()
    }
    check_averages(scores, expected)
    labels = sorted(set(gold) | set(predicted))
    assert list(scores.per_label) == labels
    assert scores.overall["accuracy"] == pytest.approx(reference.accuracy_score(gold, predicted))
    assert scores.confusion is not None
    counted = {(g, p): n for g, row in scores.confusion.items() for p, n in row.items()}
    assert counted == Counter(pairs)
    assert scores.overall["undefined"] == len(set(labels) - set(predicted)) + len(set(labels) - set(gold))


SETS = st.lists(st.tuples(st.sets(LABELS), st.sets(LABELS)), min_size=1, max_size=8)


@given(SETS.filter(lambda rows: len(set().union(*(g | p for g, p in rows))) > 1))  # scikit-learn takes one label for binary
def test_multi_label_is_scikit_learns(rows: list[tuple[set[str], set[str]]]) -> None:
    gold, predicted = ([sorted(row) for row in side] for side in zip(*rows, strict=True))
    scores = metrics.multi_label(lists(gold), lists(predicted))
    binarizer = MultiLabelBinarizer(classes=sorted({label for row in rows for side in row for label in side}))
    g, p = binarizer.fit_transform(gold), binarizer.transform(predicted)
    averages = {"micro": "micro", "macro": "macro", "weighted": "weighted", "labels": None}
    expected = {
        name: reference.precision_recall_fscore_support(g, p, average=average, zero_division=0)
        for name, average in averages.items()
    }
    check_averages(scores, expected)
    assert scores.overall["subset_accuracy"] == pytest.approx(reference.accuracy_score(g, p))


def test_a_label_given_twice_counts_once() -> None:
    scores = metrics.multi_label(lists([["a"], ["b"]]), lists([["a", "a"], []]))
    assert scores.per_label["a"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert scores.overall["subset_accuracy"] == 0.5


SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string())]))
TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-ORG"])
DOCUMENTS = st.lists(
    st.integers(0, 9).flatmap(
        lambda n: st.tuples(st.lists(TAGS, min_size=n, max_size=n), st.lists(TAGS, min_size=n, max_size=n))
    ),
    min_size=1,
    max_size=6,
)


def spans(documents: list[list[str]]) -> pa.Array:
    found = [[{"start": s, "end": e + 1, "label": label} for label, s, e in get_entities(tags)] for tags in documents]
    return pa.array(found, SPANS)


@given(DOCUMENTS)
def test_entities_are_seqevals(documents: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([list(tags) for tags in side] for side in zip(*documents, strict=True))
    g, p = spans(gold), spans(predicted)
    scores = metrics.entities(g, p)
    if not len(g.flatten()) and not len(p.flatten()):
        assert (scores.overall["micro_f1"], scores.overall["macro_f1"], scores.overall["undefined"]) == (0, 0, 3)
        return
    averages = {"micro": "micro", "macro": "macro", "weighted": "weighted", "labels": None}
    expected = {name: seqeval_scores(gold, predicted, average=average, zero_division=0) for name, average in averages.items()}
    check_averages(scores, expected)


def test_an_entity_counts_in_its_own_row_only_and_once() -> None:
    entity = {"start": 0, "end": 2, "label": "LOC"}
    moved = metrics.entities(pa.array([[entity], []], SPANS), pa.array([[], [entity]], SPANS))
    assert moved.overall["micro_f1"] == 0
    twice = metrics.entities(pa.array([[entity]], SPANS), pa.array([[entity, entity]], SPANS))
    assert twice.overall["micro_precision"] == 1


def test_a_slice_of_lists_is_scored_as_it_stands() -> None:
    entity = {"start": 0, "end": 2, "label": "LOC"}
    gold, predicted = pa.array([[entity], [], [entity]], SPANS), pa.array([[], [entity], [entity]], SPANS)
    assert metrics.entities(gold[2:], predicted[2:]).overall["micro_f1"] == 1


NUMBERS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=12)


@given(NUMBERS)
def test_regression_is_scipys(pairs: list[tuple[int, int]]) -> None:
    g, p = np.array(pairs, np.float64).T
    overall = metrics.regression(pa.array(g), pa.array(p)).overall
    assert overall["mse"] == pytest.approx(reference.mean_squared_error(g, p))
    assert overall["mae"] == pytest.approx(reference.mean_absolute_error(g, p))
    if np.ptp(g) and np.ptp(p):
        assert overall["pearson"] == pytest.approx(stats.pearsonr(g, p).statistic, abs=1e-12)
        assert overall["spearman"] == pytest.approx(stats.spearmanr(g, p).statistic, abs=1e-12)
        assert overall["undefined"] == 0
    else:
        assert (overall["pearson"], overall["spearman"], overall["undefined"]) == (0, 0, 2)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=16))
def test_ranking_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    g, p = np.array(pairs, np.float64).T
    overall = metrics.pair_score(pa.array(g), pa.array(p)).overall
    correlations = 0 if np.ptp(g) and np.ptp(p) else 2
    if np.ptp(g):
        assert overall["average_precision"] == pytest.approx(reference.average_precision_score(g, p))
        assert overall["roc_auc"] == pytest.approx(reference.roc_auc_score(g, p))
        assert overall["undefined"] == correlations
    else:
        assert overall["roc_auc"] == 0
        assert overall["average_precision"] == g[0]
        assert overall["undefined"] == correlations + (1 if g[0] else 2)


def test_scores_that_are_no_classes_are_not_ranked() -> None:
    overall = metrics.pair_score(pa.array([0.0, 0.5, 1.0]), pa.array([0.1, 0.2, 0.3])).overall
    assert set(overall) == {"mse", "mae", "pearson", "spearman", "undefined"}


def test_choices_are_listed_by_number() -> None:
    scores = metrics.multiple_choice(pa.array([10, 2, 2]), pa.array([10, 2, 10]))
    assert scores.overall == {"accuracy": pytest.approx(2 / 3)}
    assert list(scores.per_label) == ["2", "10"]
    assert scores.confusion == {"10": {"10": 1}, "2": {"2": 1, "10": 1}}


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        (["The Quick, brown fox!"], "quick brown   fox", 1, 1),
        (["quick brown fox"], "a slow brown fox", 0, 2 * 2 / 6),
        (["the the cat cat"], "cat", 0, 2 * 1 / 3),
        (["Paris", "the city of Paris"], "city of Paris", 1, 1),
        (["Theater"], "heater", 0, 0),
        ([], "", 1, 1),
        ([], "something", 0, 0),
        (["something"], "", 0, 0),
        (["the"], "", 1, 1),
        (["the", "cat"], "", 0, 0),
        (["北京大学"], "北京 大学。", 1, 1),
        (["北京大学"], "京大", 0, 2 * 2 / 6),
        (["于1999年"], "1999年", 0, 2 * 2 / 5),
        (["A股"], "股", 0, 2 / 3),
        (["「とうきょう」"], "とうきょう", 1, 1),
    ],
)
def test_answers_follow_squad(gold: list[str], predicted: str, exact: float, f1: float) -> None:
    overall = metrics.answers(lists([gold]), strings([predicted])).overall
    assert [overall["exact_match"], overall["f1"]] == pytest.approx([exact, f1])


def test_answers_are_reported_by_whether_there_is_one() -> None:
    scores = metrics.answers(lists([["x"], ["y"], []]), strings(["x", "z", ""]))
    assert scores.overall == {"exact_match": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}
    assert scores.per_label == {
        "answerable": {"exact_match": 0.5, "f1": 0.5, "support": 2},
        "unanswerable": {"exact_match": 1.0, "f1": 1.0, "support": 1},
    }
    empty = metrics.answers(lists([["x"]]), strings(["x"])).per_label["unanswerable"]
    assert empty == {"exact_match": 0.0, "f1": 0.0, "support": 0}
