"""The types of a task's column and of gold choose the metric, and gold of another shape is refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.scoring import choose

FLOATS = pa.list_(pa.float32())
LABEL = pa.struct([("label", pa.string()), ("score", pa.float32()), ("scores", FLOATS)])
LABELS = pa.struct([("labels", pa.list_(pa.string())), ("scores", FLOATS)])
CHOICE = pa.struct([("choice", pa.int32()), ("score", pa.float32()), ("scores", FLOATS)])
ANSWER = pa.struct([("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())])
ENTITY = pa.struct(
    [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("score", pa.float32()), ("text", pa.string())]
)
SPAN = pa.struct([("label", pa.string()), ("end", pa.int64()), ("start", pa.int64())])
MASKS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("tokens", pa.list_(pa.string())), ("scores", FLOATS)]))
STRINGS = pa.list_(pa.string())
EMPTY = pa.list_(pa.null())


@pytest.mark.parametrize(
    ("predicted", "gold", "name"),
    [
        (LABEL, pa.string(), "classification"),
        (LABEL, pa.null(), "classification"),
        (LABEL, pa.int64(), "regression"),
        (LABEL, pa.float32(), "regression"),
        (LABELS, STRINGS, "multi_label"),
        (LABELS, EMPTY, "multi_label"),
        (pa.float32(), pa.float64(), "pair_score"),
        (pa.float32(), pa.bool_(), "pair_score"),
        (pa.list_(ENTITY), pa.list_(SPAN), "entities"),
        (pa.list_(ENTITY), EMPTY, "entities"),
        (ANSWER, pa.string(), "answers"),
        (pa.list_(ANSWER), STRINGS, "answers"),
        (CHOICE, pa.int8(), "multiple_choice"),
    ],
)
def test_types_choose_the_metric(predicted: pa.DataType, gold: pa.DataType, name: str) -> None:
    assert choose(predicted, gold, "task")[0] == name


@pytest.mark.parametrize(
    ("predicted", "gold", "message"),
    [
        (LABEL, STRINGS, "gold is list<.*string>; for classification it is the label's name"),
        (LABELS, pa.string(), "for multi_label it is a list of the labels' names"),
        (pa.float32(), pa.string(), "for pair_score it is a number"),
        (pa.list_(ENTITY), STRINGS, "for entities it is a list of structs"),
        (pa.list_(ENTITY), pa.list_(pa.struct([("start", pa.int64()), ("label", pa.string())])), "for entities"),
        (pa.list_(ENTITY), SPAN, "for entities"),
        (ANSWER, pa.int64(), "for answers it is a string or a list"),
        (CHOICE, pa.float64(), "for multiple_choice it is the index"),
    ],
)
def test_gold_of_another_shape_is_refused(predicted: pa.DataType, gold: pa.DataType, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--gold: .*{message}"):
        choose(predicted, gold, "task")


@pytest.mark.parametrize("column", [MASKS, pa.int32(), pa.string(), pa.list_(LABEL)])
def test_columns_without_a_metric_are_refused(column: pa.DataType) -> None:
    with pytest.raises(ConfigError, match=r"^--task: there is no metric for column 'n_tokens'"):
        choose(column, pa.string(), "n_tokens")


def converted(predicted: pa.DataType, given: list[Any], gold: pa.Array) -> tuple[list[Any], list[Any]]:
    _, metric = choose(predicted, gold.type, "task")
    return metric.predicted(pa.array(given, predicted)).to_pylist(), metric.gold(gold).to_pylist()


def test_answers_are_the_first_of_their_list_and_gold_is_always_a_list() -> None:
    given = [[{"answer": "a"}, {"answer": "b"}], [], [{"answer": None}], None]
    gold = pa.array(["x", None, "y", ""])
    assert converted(pa.list_(ANSWER), given, gold) == (["a", "", "", ""], [["x"], [], ["y"], [""]])
    assert converted(ANSWER, [{"answer": "a"}, None], pa.array([["x", "y"], None])) == (["a", ""], [["x", "y"], []])
    assert converted(ANSWER, [None], pa.array([None], pa.null())) == ([""], [[]])


def test_numbers_that_are_not_finite_are_no_gold() -> None:
    scores = [{"label": None, "score": 1.0}, None, {"label": None, "score": None}]
    assert converted(LABEL, scores, pa.array([1.0, float("nan"), float("inf")])) == ([1.0, None, None], [1.0, None, None])
    assert converted(pa.float32(), [0.5], pa.array([True])) == ([0.5], [1.0])


def test_a_number_for_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="the column holds labels; give gold as their names"):
        converted(LABEL, [{"label": "x", "score": 0.5}], pa.array([1]))


def test_nulls_inside_the_lists_of_gold_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 values inside the lists of gold are null or missing"):
        converted(LABELS, [None], pa.array([["x", None]]))
    with pytest.raises(ConfigError, match="1 values inside"):
        converted(pa.list_(ENTITY), [None], pa.array([[{"start": 0, "end": 1, "label": None}]], pa.list_(SPAN)))
