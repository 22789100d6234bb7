"""The best of several texts for a document: each choice is read beside the document, and the model's scores are compared.

A document that fits one window beside its longest choice gets what transformers' `AutoModelForMultipleChoice` says of the pairs
(text, choice).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from operators import aggregation
from operators.aggregation import Floats
from operators.inputs import Companion, Inputs
from operators.labels import WindowHead, structs
from operators.models.layout import Layout
from operators.packing import ranges


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: Annotated[str, Field(min_length=1)]
    """The column of lists of choices, one at least; each stands whole in every window."""
    aggregate: Literal["max", "mean"] = "max"
    """How the logits of a choice in a document's windows become one."""


class Head(WindowHead):
    """ValueError where the model that `layout` describes has no such classifier."""

    type: pa.DataType = pa.struct([("choice", pa.int32()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])

    def __init__(self, config: Config, layout: Layout) -> None:
        if layout.model_type not in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES:
            raise ValueError(f"transformers has no multiple choice for the family {layout.model_type}; choose another model")
        super().__init__(layout, "MultipleChoice")
        if self._task.raw.get("summary_type", "first") != "first":
            raise ValueError(f"the model's summary_type is {self._task.raw['summary_type']}; only first is supported")
        self._aggregate = aggregation.maximum if config.aggregate == "max" else aggregation.mean
        self.width = 1
        self.companion = Companion(column=config.choices)
        self.columns = {config.choices: pa.list_(pa.string())}

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The best choice of each document, counted from 0, its score, and all scores: a softmax over the document's choices."""
        counts = np.bincount(inputs.entry_document, minlength=inputs.n_documents)
        starts = np.cumsum(counts) - counts
        # Documents that are too long have no windows; what stands here for them is not read.
        evidence = np.nan_to_num(self._aggregate(scores, inputs.segments)[:, 0]).astype(np.float64)
        highest = np.repeat(np.maximum.reduceat(evidence, starts), counts)
        shares = np.exp(evidence - highest)
        shares /= np.repeat(np.add.reduceat(shares, starts), counts)
        # The first of equals, as argmax has it.
        choice = np.minimum.reduceat(np.where(evidence == highest, ranges(counts), len(evidence)), starts)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        values = shares.astype(np.float32)
        columns = {
            "choice": pa.array(choice, pa.int32()),
            "score": pa.array(values[starts + choice]),
            "scores": pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(values)),
        }
        return structs(columns)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: 1 where the choices agree, else 0."""
        same: Floats = pc.equal(pc.struct_field(values, "choice"), pc.struct_field(reference, "choice")).to_numpy(
            zero_copy_only=False
        )
        return same.astype(np.float32)
