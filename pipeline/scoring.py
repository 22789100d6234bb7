"""Which metric fits a task's column and its gold, by their Arrow types, and both in the form in which the metric takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from operators import metrics
from operators.metrics import Scores
from pipeline.errors import ConfigError
from pipeline.source.types import is_number, is_string

_SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string())])

TypeTest = Callable[[pa.DataType], bool]


class Metric(NamedTuple):
    """`score(gold, predicted)` of rows where both are valid, after `gold` and `predicted` of the columns as they are."""

    score: Callable[[pa.Array, pa.Array], Scores]
    predicted: Callable[[pa.Array], pa.Array]
    """The task's column; null for a row without a result."""
    gold: Callable[[pa.Array], pa.Array]
    """Gold; null for a row without gold."""
    fits: TypeTest
    """Types of gold."""
    wanted: str
    """The same in words."""


def choose(predicted: pa.DataType, gold: pa.DataType, task: str) -> tuple[str, Metric]:
    """The metric and its name. ConfigError where no metric knows the column, or gold is of another kind."""
    name = _name(predicted, gold)
    if name is None:
        raise ConfigError(f"there is no metric for column {task!r}, a {predicted}; name a task's column", field="--task")
    metric = _METRICS[name]
    if not (metric.fits(gold) or pat.is_null(gold)):
        raise misfit(name, metric.wanted, gold)
    return name, metric


def misfit(metric: str, wanted: str, seen: pa.DataType) -> ConfigError:
    """Gold is of another kind than the metric wants."""
    return ConfigError(f"gold is {seen}; for {metric} it is {wanted}", field="--gold")


def is_list_of(type_: pa.DataType, test: TypeTest) -> bool:
    """Lists of such values, or lists that are all empty."""
    return bool(pat.is_list(type_) and (pat.is_null(type_.value_type) or test(type_.value_type)))


def items(lists: pa.Array) -> pa.Array:
    """The values of all lists, one list after the other. ConfigError where one is null."""
    values = lists.flatten()
    parts = values.flatten() if pat.is_struct(values.type) else [values]
    nulls = sum(part.null_count for part in parts)
    if nulls:
        raise ConfigError(f"{nulls} values inside the lists of gold are null or missing", field="--gold")
    return values


def _name(predicted: pa.DataType, gold: pa.DataType) -> str | None:
    """Regression and classification give columns of the same type; gold tells them apart."""
    in_list = pat.is_list(predicted)
    item = predicted.value_type if in_list else predicted
    fields = {f.name for f in item} if pat.is_struct(item) else set()
    if "answer" in fields:
        return "answers"
    if in_list:
        return "entities" if {"start", "end", "label", "text"} <= fields else None
    if "label" in fields:
        return "regression" if is_number(gold) else "classification"
    if pat.is_floating(predicted):
        return "pair_score"
    return next((name for field, name in (("choice", "multiple_choice"), ("labels", "multi_label")) if field in fields), None)


def _field(name: str) -> Callable[[pa.Array], pa.Array]:
    return lambda column: pc.struct_field(column, name)


def _strings(column: pa.Array) -> pa.Array:
    return column.cast(pa.string())


def _label_lists(column: pa.Array) -> pa.Array:
    lists = column.cast(pa.list_(pa.string()))
    items(lists)
    return lists


def _span_lists(column: pa.Array) -> pa.Array:
    lists = column.cast(pa.list_(_SPAN))
    items(lists)
    return lists


def _finite(column: pa.Array) -> pa.Array:
    """As float64; what is not finite becomes null."""
    values = column.cast(pa.float64())
    return pc.if_else(pc.is_finite(values), values, None)


def _regression_scores(column: pa.Array) -> pa.Array:
    if pc.struct_field(column, "label").null_count < len(column):
        raise ConfigError("gold is a number and the column holds labels; give gold as their names", field="--gold")
    return _finite(pc.struct_field(column, "score"))


def _best_answers(column: pa.Array) -> pa.Array:
    """The answer, or the first of a list; "" where there is none."""
    if pat.is_list(column.type):
        lengths = _lengths(column)
        column = column.flatten().take(pa.array(np.cumsum(lengths) - lengths, mask=lengths == 0))
    return pc.fill_null(pc.struct_field(column, "answer"), "")


def _answer_lists(column: pa.Array) -> pa.Array:
    """Lists of acceptable answers, empty where gold is null."""
    in_list = pat.is_list(column.type)
    lengths = _lengths(column) if in_list else column.is_valid().to_numpy(zero_copy_only=False)
    values = items(column) if in_list else column.drop_null()
    offsets = np.append(0, np.cumsum(lengths))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.cast(pa.string()))


def _lengths(lists: pa.Array) -> metrics.Ints:
    lengths: metrics.Ints = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    return lengths


def _is_span(type_: pa.DataType) -> bool:
    if not pat.is_struct(type_) or not {f.name for f in _SPAN} <= {f.name for f in type_}:
        return False
    start, end, label = (type_[name].type for name in ("start", "end", "label"))
    return bool(pat.is_integer(start) and pat.is_integer(end) and is_string(label))


def _is_score(type_: pa.DataType) -> bool:
    return bool(is_number(type_) or pat.is_boolean(type_))


def _is_answer(type_: pa.DataType) -> bool:
    return is_string(type_) or is_list_of(type_, is_string)


_METRICS = {
    "classification": Metric(metrics.classification, _field("label"), _strings, is_string, "the label's name, a string"),
    "multi_label": Metric(
        metrics.multi_label, _field("labels"), _label_lists, lambda t: is_list_of(t, is_string), "a list of the labels' names"
    ),
    "regression": Metric(metrics.regression, _regression_scores, _finite, is_number, "a number"),
    "pair_score": Metric(metrics.pair_score, _finite, _finite, _is_score, "a number, or 0 and 1"),
    "entities": Metric(
        metrics.entities,
        _span_lists,
        _span_lists,
        lambda t: is_list_of(t, _is_span),
        "a list of structs with the integers start and end and the string label",
    ),
    "answers": Metric(
        metrics.answers, _best_answers, _answer_lists, _is_answer, "a string or a list of acceptable ones, null or empty for none"
    ),
    "multiple_choice": Metric(
        metrics.multiple_choice, _field("choice"), lambda c: c.cast(pa.int64()), pat.is_integer, "the index of the right choice"
    ),
}
