"""Labels of whole documents: the logits of the model's own classifier for each window, aggregated to the document.

A document that fits one window gets the scores that transformers' text-classification pipeline gives it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from operators import aggregation
from operators.aggregation import Floats
from operators.inputs import Inputs
from operators.labels import (
    LABELS,
    ONE_LABEL,
    WindowHead,
    agreement,
    labels_above,
    nearness,
    one_label,
    score_lists,
    scores_of,
    sigmoid,
    softmax,
    structs,
    top_labels,
)
from operators.models.layout import Layout

_TOP = {"top": pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))}


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aggregate: Literal["mean", "max", "noisy_or", "first", "none"] = "mean"
    """How windows become the document: `mean` and `first` of logits, `max` and `noisy_or` of each label's scores; none: a list of
    the windows' results, each with its span."""
    multi_label: Literal["auto"] | StrictBool = "auto"
    """Whether a document may have any number of labels; auto: as the model's problem_type says."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The score that a label must reach where there may be any number of them."""
    top_k: Annotated[int, Field(gt=0)] | None = None
    """Adds the field `top`: so many labels with their scores, the highest first."""


class Head(WindowHead):
    """ValueError where `config` does not fit the model that `layout` describes."""

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__(layout, "SequenceClassification")
        problem = self._task.problem_type
        self._config = config
        self._regression = problem == "regression"
        self._multi = problem == "multi_label_classification" if config.multi_label == "auto" else config.multi_label
        if self._regression:
            _check_regression(config)
        # As in the pipeline: a classifier of one logit cannot mean a softmax.
        self._activation = sigmoid if self._multi or self.width == 1 else softmax
        self.wants_offsets = config.aggregate == "none"
        span = {"start": pa.int32(), "end": pa.int32()} if self.wants_offsets else {}
        fields = span | (LABELS if self._multi else ONE_LABEL) | (_TOP if config.top_k else {})
        self.type: pa.DataType = pa.struct(list(fields.items()))
        if self.wants_offsets:
            self.type = pa.list_(self.type)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The labels of each document, or the list of its windows' labels."""
        segments = inputs.segments
        if self._config.aggregate == "none":
            items = structs(inputs.window_spans() | self._labelled(self._activate(scores)))
            bounds = np.concatenate([[0], np.cumsum(segments.n_segments)])
            return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), items)
        if self._config.aggregate == "max":
            documents = aggregation.maximum(self._activate(scores), segments)
        elif self._config.aggregate == "noisy_or":
            documents = aggregation.noisy_or(self._activate(scores), segments)
        else:
            aggregate = aggregation.mean if self._config.aggregate == "mean" else aggregation.first
            documents = self._activate(aggregate(scores, segments))
        return structs(self._labelled(documents))

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: 1 where the labels agree, else 0; `nearness` for a regression. The mean over windows where each has
        its own."""
        listed = self._config.aggregate == "none"
        mine, theirs = (scores_of(column.flatten() if listed else column, self.width) for column in (values, reference))
        if self._regression:
            near: Floats = nearness(mine, theirs).min(axis=1)
        else:
            near = agreement(mine, theirs, self._config.threshold if self._multi else None)
        if listed and len(values):
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            near = np.add.reduceat(near, np.cumsum(lengths) - lengths) / lengths.astype(np.float32)
        return near

    def _activate(self, logits: Floats) -> Floats:
        return logits if self._regression else self._activation(logits)

    def _labelled(self, scores: Floats) -> dict[str, pa.Array]:
        """The fields of the results for scores [N, labels]."""
        labels, top_k = self._task.labels, self._config.top_k
        if self._regression:
            # Several values have no one score; they are in `scores`.
            score = pa.array(scores[:, 0]) if self.width == 1 else pa.nulls(len(scores), pa.float32())
            return {"label": pa.nulls(len(scores), pa.string()), "score": score, "scores": score_lists(scores)}
        columns = labels_above(scores, labels, self._config.threshold) if self._multi else one_label(scores, labels)
        return columns | ({"top": top_labels(scores, labels, top_k)} if top_k else {})


def _check_regression(config: Config) -> None:
    refused = {
        "multi_label: true": config.multi_label is True,
        "top_k": config.top_k,
        "aggregate: noisy_or": config.aggregate == "noisy_or",
    }
    for setting, given in refused.items():
        if given:
            raise ValueError(f"{setting} is for labels, but the model's problem_type is regression; leave it out")
