"""What heads that label whole windows share: the logits of windows by the model's own classifier, and columns of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from operators import encoding
from operators.aggregation import Floats
from operators.inputs import Inputs
from operators.models.layout import Layout
from operators.models.task import TaskModel, read_task
from operators.packing import Pack
from operators.pooling import pool
from operators.segmentation import Flags

ONE_LABEL = {"label": pa.string(), "score": pa.float32(), "scores": pa.list_(pa.float32())}
"""Fields of a result with one label at most."""

LABELS = {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}
"""Fields of a result with any number of labels."""


class WindowHead(encoding.Head):
    """A head whose rows are what a model's classifier says of each window. `task` is transformers' name, such as
    SequenceClassification; ValueError where the model of `layout` was not made for it."""

    def __init__(self, layout: Layout, task: str) -> None:
        self._layout = layout
        self._task_name = task
        self._task = read_task(layout, task)
        # ModernBERT alone lets its classifiers read something other than the first token.
        mean = layout.model_type == "modernbert" and self._task.raw.get("classifier_pooling") == "mean"
        self._pooling = "mean" if mean else "cls"
        self._model: TaskModel | None = None
        self.width = len(self._task.labels)

    def load(self, device: torch.device) -> None:
        """Load the pooler and classifier; ValueError where the files lack their weights."""
        self._model = TaskModel(self._layout, self._task_name, device)

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [S, width]: logits of each window."""
        if self._model is None:
            raise RuntimeError("load() comes before score()")
        pooled = pool(hidden_TH, pack, (self._pooling,), 0)[:, None]
        # Models of multiple choice take [B, choices, L, H]: the windows are handed over as choices of one question.
        logits: Tensor = self._model(pooled[None] if self._task_name == "MultipleChoice" else pooled).logits
        return logits.reshape(len(pooled), -1)


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) of each component."""
    return _float32(torch.sigmoid(torch.from_numpy(logits).double()))


def softmax(logits: Floats) -> Floats:
    """exp(x) / sum(exp(x)) over the last axis."""
    return _float32(torch.softmax(torch.from_numpy(logits).double(), -1))


def one_label(scores: Floats, labels: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of ONE_LABEL for scores [N, labels]: the label of the highest score, the first of equals."""
    best = scores.argmax(axis=1)
    score = scores[np.arange(len(scores)), best]
    return {"label": _names(labels).take(pa.array(best)), "score": pa.array(score), "scores": score_lists(scores)}


def labels_above(scores: Floats, labels: Sequence[str], threshold: float) -> dict[str, pa.Array]:
    """The columns of LABELS for scores [N, labels]: the labels that reach the threshold, in their own order."""
    reached = _reached(scores, threshold)
    names = _names(labels).take(pa.array(np.nonzero(reached)[1]))
    bounds = np.concatenate([[0], np.cumsum(reached.sum(axis=1))])
    return {"labels": pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), names), "scores": score_lists(scores)}


def top_labels(scores: Floats, labels: Sequence[str], top: int) -> pa.Array:
    """list<struct<label, score>>: the `top` labels of each row of scores [N, labels], the highest first, equals in order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    columns = {
        "label": _names(labels).take(pa.array(order.reshape(-1))),
        "score": pa.array(np.take_along_axis(scores, order, axis=1).reshape(-1)),
    }
    bounds = np.arange(len(scores) + 1) * order.shape[1]
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), structs(columns))


def score_lists(scores: Floats) -> pa.Array:
    """list<float32>: the rows of scores [N, labels]."""
    bounds = np.arange(len(scores) + 1) * scores.shape[1]
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(scores.reshape(-1)))


def structs(columns: Mapping[str, pa.Array]) -> pa.StructArray:
    """The columns as one column of structs."""
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))


def scores_of(values: pa.Array, labels: int) -> Floats:
    """float32 [N, labels]: the field `scores` of structs in which each has a score for every label."""
    scores: Floats = pc.struct_field(values, "scores").flatten().to_numpy(zero_copy_only=False).reshape(-1, labels)
    return scores


def nearness(mine: Floats, theirs: Floats) -> Floats:
    """float32 [N]: 1 - e^2 / 2, 0 at least, e being the difference, relative where the reference is beyond 1.

    It is to numbers what the cosine is to vectors, so that one tolerance serves both."""
    error = np.abs(mine - theirs) / np.maximum(1, np.abs(theirs))
    near: Floats = (1 - error**2 / 2).clip(min=0)
    return near


def agreement(mine: Floats, theirs: Floats, threshold: float | None) -> Floats:
    """float32 [N]: 1 where two scores [N, labels] mean the same label, or the same labels where there is a threshold; else 0."""
    if threshold is None:
        same: Flags = mine.argmax(axis=1) == theirs.argmax(axis=1)
    else:
        same = (_reached(mine, threshold) == _reached(theirs, threshold)).all(axis=1)
    return same.astype(np.float32)


def _reached(scores: Floats, threshold: float) -> Flags:
    # In float32, so that 0.7 is reached by a score of 0.7.
    reached: Flags = scores >= np.float32(threshold)
    return reached


def _names(labels: Sequence[str]) -> pa.StringArray:
    return pa.array(labels, pa.string())


def _float32(values: Tensor) -> Floats:
    converted: Floats = values.float().numpy()
    return converted
