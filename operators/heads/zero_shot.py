"""Labels without training: a model of natural language inference judges for each label whether a hypothesis follows.

A document that fits one window beside the longest hypothesis gets the scores that transformers' zero-shot-classification
pipeline gives it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator
from torch import Tensor

from operators import aggregation
from operators.aggregation import Floats
from operators.inputs import Companion, Inputs
from operators.labels import (
    LABELS,
    ONE_LABEL,
    WindowHead,
    agreement,
    labels_above,
    one_label,
    scores_of,
    sigmoid,
    softmax,
    structs,
)
from operators.models.layout import Layout
from operators.packing import Pack

_PLACE = "{}"


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    template: str = "This example is {}."
    """The hypothesis; the label stands in place of {}."""
    multi_label: StrictBool = False
    """Whether a document may have any number of labels, each judged by itself."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The score that a label must reach where there may be any number of them."""
    aggregate: Literal["max", "mean"] = "max"
    """How the evidence for a label in a document's windows becomes one: the strongest, or the mean by owned tokens."""

    @field_validator("labels")
    @classmethod
    def _unique(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed more than once")
        return labels

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count(_PLACE) != 1:
            raise ValueError(f"the template must hold {_PLACE} once, where the label goes")
        return template


class Head(WindowHead):
    """ValueError where the model that `layout` describes does not say which of its labels is entailment."""

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__(layout, "SequenceClassification")
        self._config = config
        self._entailment = _entailment(self._task.labels)
        # As in the pipeline: models of three labels have contradiction first, unless entailment is.
        self._contradiction = -1 if self._entailment == 0 else 0
        self._apart = config.multi_label or len(config.labels) == 1
        self.type: pa.DataType = pa.struct(list((LABELS if config.multi_label else ONE_LABEL).items()))
        self.width = 1
        self.companion = Companion(texts=tuple(config.template.replace(_PLACE, label) for label in config.labels))

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [S, 1]: the evidence for a hypothesis in each window: the logit of entailment, less that of contradiction where
        labels are judged each by itself."""
        logits = super().score(hidden_TH, pack, inputs)
        evidence = logits[:, self._entailment]
        return (evidence - logits[:, self._contradiction] if self._apart else evidence)[:, None]

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The labels of each document. A softmax over two logits is the sigmoid of their difference."""
        labels, config = self._config.labels, self._config
        aggregate = aggregation.maximum if config.aggregate == "max" else aggregation.mean
        evidence = aggregate(scores, inputs.segments).reshape(inputs.n_documents, len(labels))
        shares = sigmoid(evidence) if self._apart else softmax(evidence)
        return structs(labels_above(shares, labels, config.threshold) if config.multi_label else one_label(shares, labels))

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: 1 where the labels agree, else 0."""
        mine, theirs = (scores_of(column, len(self._config.labels)) for column in (values, reference))
        return agreement(mine, theirs, self._config.threshold if self._config.multi_label else None)


def _entailment(labels: tuple[str, ...]) -> int:
    for number, label in enumerate(labels):
        if label.lower().startswith("entail") and len(labels) > 1:
            return number
    raise ValueError(
        f"the model's labels are {', '.join(labels)}; zero-shot needs a model of natural language inference, "
        "with a label whose name starts with 'entail' and another"
    )
