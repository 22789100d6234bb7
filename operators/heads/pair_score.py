"""Scores of pairs by a cross-encoder: the text and a second column, read together.

A pair that fits one window gets the score that sentence-transformers' CrossEncoder gives it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from operators import aggregation
from operators.aggregation import Floats
from operators.inputs import Companion, Inputs
from operators.labels import WindowHead, nearness, sigmoid
from operators.models.files import read_json
from operators.models.layout import Layout

_AGGREGATES: dict[str, aggregation.Aggregate] = {"max": aggregation.maximum, "mean": aggregation.mean, "first": aggregation.first}
_ACTIVATIONS = ("sigmoid", "identity")


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_pair: Annotated[str, Field(min_length=1)]
    """The column of second texts, whole in every window."""
    order: Literal["text_first", "pair_first"] = "text_first"
    """Which of the two the model reads first; most rerankers read a query before a passage."""
    aggregate: Literal["max", "mean", "first"] = "max"
    """How the logits of windows become the document's."""
    activation: Literal["auto", "sigmoid", "identity"] = "auto"
    """What makes the score of the logit; auto: what the model's files name, else sigmoid."""


class Head(WindowHead):
    """ValueError where the model that `layout` describes has more than one logit or an activation that is not known."""

    type: pa.DataType = pa.float32()

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__(layout, "SequenceClassification")
        if self.width != 1:
            raise ValueError(f"the model gives {self.width} logits for a pair; pair_score needs one that gives 1")
        self._aggregate = _AGGREGATES[config.aggregate]
        activation = _activation(layout, self._task.raw) if config.activation == "auto" else config.activation
        self._sigmoid = activation == "sigmoid"
        self.companion = Companion(column=config.text_pair, first=config.order == "pair_first")
        self.columns = {config.text_pair: pa.string()}

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The score of each pair."""
        logits = self._aggregate(scores, inputs.segments)[:, 0]
        return pa.array(sigmoid(logits) if self._sigmoid else logits)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: `operators.labels.nearness` of the scores."""
        return nearness(*(column.to_numpy(zero_copy_only=False) for column in (values, reference)))


def _activation(layout: Layout, config: dict[str, Any]) -> str:
    """What the model's files name, looked for as by CrossEncoder, or sigmoid."""
    saved = config.get("sentence_transformers")
    named = saved.get("activation_fn") if isinstance(saved, dict) else config.get("sbert_ce_default_activation_function")
    top = layout.directories[0]
    if (top / "modules.json").exists():  # CrossEncoder reads the other file of models that it saved itself only
        named = (read_json(top / "config_sentence_transformers.json", dict) or {}).get("activation_fn") or named
    activation = str(named or "torch.nn.Sigmoid").rpartition(".")[2].lower()
    if named and (not str(named).startswith("torch.nn.") or activation not in _ACTIVATIONS):
        raise ValueError(f"the model's files name the activation {named}; set `activation` to {' or '.join(_ACTIVATIONS)}")
    return activation
