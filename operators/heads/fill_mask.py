"""What may stand where a text has the model's mask token: the likeliest tokens for every mask of a document, in order.

A document that fits one window gets what transformers' fill-mask pipeline gives. In longer ones each mask is filled by the
window that owns it, the one in which it is farther from an edge.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from operators import encoding
from operators.aggregation import Floats
from operators.inputs import Inputs
from operators.models.layout import Layout
from operators.models.task import TaskModel, read_task
from operators.packing import Pack, ranges
from operators.segmentation import Ints
from operators.tokenization import Tokenizer

_BLOCK = 128
"""Masks whose scores over the vocabulary are computed at once: 128 MB in a vocabulary of 250,000."""


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: Annotated[int, Field(gt=0)] = 5
    """Tokens for each mask; fewer where there are fewer targets."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Only these tokens, each spelled so that the tokenizer makes one token of it; None: the whole vocabulary."""


class Head(encoding.Head):
    """ValueError where the model is no masked language model, or `config` does not fit its vocabulary."""

    wants_offsets = True

    def __init__(self, config: Config, layout: Layout) -> None:
        vocabulary = read_task(layout, "MaskedLM").raw.get("vocab_size")
        self._layout = layout
        self._tokenizer = Tokenizer(layout.transformer_dir, lowercase=layout.do_lower_case)
        if self._tokenizer.mask_id is None:
            raise ValueError(f"{layout.transformer_dir}: the tokenizer has no mask token, so no text can ask for a word")
        self._mask_id = self._tokenizer.mask_id
        self._targets = torch.tensor(_target_ids(config.targets, self._tokenizer)) if config.targets else None
        if not isinstance(vocabulary, int) or config.top_k > vocabulary:
            raise ValueError(f"top_k {config.top_k} is more than the model's vocabulary, whose size is {vocabulary}")
        self._top_k = config.top_k if self._targets is None else min(config.top_k, len(self._targets))
        self.width = 2 * self._top_k
        lists = [pa.field("tokens", pa.list_(pa.string())), pa.field("scores", pa.list_(pa.float32()))]
        self._fields = [pa.field("start", pa.int32()), pa.field("end", pa.int32()), *lists]
        self.type: pa.DataType = pa.list_(pa.struct(self._fields))

    def load(self, device: torch.device) -> None:
        """Load the layers that score the vocabulary."""
        self._model = TaskModel(self._layout, "MaskedLM", device)

    def rows(self, inputs: Inputs) -> Ints:
        """int64 [S]: masks that each window owns."""
        return np.bincount(self._masks(inputs)[1], minlength=len(inputs.segments.length))

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [R, 2 K]: for each mask owned by a window of the pack the K best scores, and the ids that they belong to."""
        assert pack.body is not None
        segments, device = inputs.segments, hidden_TH.device
        owned = segments.owned[pack.segments]
        first = pack.body + (segments.first_owned - segments.start)[pack.segments]
        at = np.repeat(first, owned) + ranges(owned)
        masks = torch.from_numpy(at[pack.input_ids[at] == self._mask_id]).to(device)
        found = [torch.empty((0, self.width), device=device)]
        for begin in range(0, len(masks), _BLOCK):
            shares = self._model(hidden_TH[None, masks[begin : begin + _BLOCK]]).logits[0].float().softmax(-1)
            targets = None if self._targets is None else self._targets.to(device)
            values, ids = (shares if targets is None else shares[:, targets]).topk(self._top_k)
            found.append(torch.cat([values, (ids if targets is None else targets[ids]).float()], 1))
        return torch.cat(found)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """A list for each document, of one item for each mask that was read."""
        assert inputs.tokens.spans is not None
        masks, segment = self._masks(inputs)
        # Some tokenizers count the space before a mask into it.
        end = inputs.tokens.spans[masks, 1]
        start = end - len(self._tokenizer.token(self._mask_id))
        ids = scores[:, self._top_k :].astype(np.int32)
        distinct, which = np.unique(ids, return_inverse=True)
        tokens = pa.array([self._tokenizer.token(int(i)) for i in distinct], pa.string()).take(pa.array(which.reshape(-1)))
        inner = pa.array(np.arange(len(ids) + 1) * self._top_k, pa.int32())
        values = pa.array(np.ascontiguousarray(scores[:, : self._top_k]).reshape(-1))
        lists = [pa.ListArray.from_arrays(inner, column) for column in (tokens, values)]
        items = pa.StructArray.from_arrays([pa.array(start), pa.array(end), *lists], fields=self._fields)
        counts = np.bincount(inputs.entry_document[inputs.segments.document[segment]], minlength=inputs.n_documents)
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), items, type=self.type)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: the share of a document's masks with the same first token; 1 where it has none."""
        best = [[[mask["tokens"][0] for mask in masks] for masks in column.to_pylist()] for column in (values, reference)]
        same = [np.mean([a == b for a, b in zip(*pair, strict=True)] or [1]) for pair in zip(*best, strict=True)]
        return np.array(same, np.float32)

    def _masks(self, inputs: Inputs) -> tuple[Ints, Ints]:
        """int64 [M] each: where in `tokens.ids` the masks are that a window owns, and which window that is; in order."""
        segments = inputs.segments
        first = inputs.body_starts[segments.document] + segments.first_owned
        at = np.repeat(first, segments.owned) + ranges(segments.owned)
        masked = inputs.tokens.ids[at] == self._mask_id
        return at[masked], np.repeat(np.arange(len(first)), segments.owned)[masked]


def _target_ids(targets: tuple[str, ...], tokenizer: Tokenizer) -> list[int]:
    """The ids of `targets`, each once. ValueError where one is not a single token of a text."""
    tokens = tokenizer.tokenize(pa.array(targets, pa.large_string()))
    for target, length in zip(targets, tokens.lengths.tolist(), strict=True):
        if length != 1:
            raise ValueError(f"targets: the tokenizer makes {length} tokens of {target!r}; a mask stands for one token")
    for target, id_ in zip(targets, tokens.ids.tolist(), strict=True):
        if id_ in tokenizer.special_ids:
            raise ValueError(f"targets: {target!r} is {tokenizer.token(id_)!r} to the tokenizer; choose a word that it knows")
    return [int(id_) for id_ in np.unique(tokens.ids)]
