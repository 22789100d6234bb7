"""Sparse embeddings (SPLADE): a weight for each entry of the model's vocabulary, most of them 0.

A window's weight is the maximum (or sum, if the model says so) over its tokens, special ones included, of log(1 + relu(logit));
a document's is the maximum over its windows. A document that fits one window gets the vector that sentence-transformers'
`SparseEncoder.encode` gives it. SPLADE: Formal et al. 2021, arXiv 2109.10086.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor

from operators import encoding
from operators.aggregation import Floats
from operators.inputs import Ids, Inputs
from operators.models.files import read_json
from operators.models.layout import Layout
from operators.models.task import TaskModel, read_task
from operators.packing import Pack, ranges
from operators.prompts import PromptConfig, choose_prompt
from operators.segmentation import Ints

_LOGITS = 1 << 24
"""Logits in memory at once: those of a whole pack would be 1 GB for 8,192 tokens and a vocabulary of 30,522."""

_TYPE = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])

_STRATEGIES = ("max", "sum")
_ACTIVATIONS = {"relu": 1, "log1p_relu": 2}
"""How often log1p is taken of relu(logit)."""


class Config(PromptConfig):
    """Settings of the head, beside `head` and `model` in the task."""

    max_active_dims: Annotated[int, Field(gt=0)] = 1024
    """Keep so many of a document's largest weights."""


class Head(encoding.Head):
    """ValueError where `config` does not fit the model that `layout` describes, or that is no masked language model.

    No document's weight is lost by keeping only the largest of each window: what is larger in the same window is larger in the
    document too."""

    def __init__(self, config: Config, layout: Layout) -> None:
        vocabulary = read_task(layout, "MaskedLM").raw.get("vocab_size")
        if not isinstance(vocabulary, int) or not 0 < vocabulary < 1 << 24:  # float32 numbers ids exactly up to there
            raise ValueError(
                f"{layout.transformer_dir}/config.json: vocab_size is {vocabulary!r}; 1 to {(1 << 24) - 1} are possible"
            )
        self._layout = layout
        self._vocabulary = vocabulary
        self._strategy, self._logs = _read_pooling(layout)
        self._kept = min(config.max_active_dims, vocabulary)
        self._model: TaskModel | None = None
        self.prompt = choose_prompt(config, layout)
        self.type = _TYPE
        self.width = 2 * self._kept

    def load(self, device: torch.device) -> None:
        """Load the head of the masked language model, in float32."""
        self._model = TaskModel(self._layout, "MaskedLM", device)

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [S, 2K]: the ids of each window's K largest weights, in order, and then the weights."""
        step = max(1, _LOGITS // self._vocabulary)
        bounds = pack.cu_seqlens
        results: list[Tensor] = []
        first = 0
        while first < len(pack.lengths):
            # Windows of at most `step` tokens together, or one that is longer.
            last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + step, side="right")) - 1)
            weights_SV = self._pool(hidden_TH[bounds[first] : bounds[last]], pack.lengths[first:last], step)
            weights, ids = weights_SV.topk(self._kept, dim=1)
            ids, order = ids.sort(dim=1)
            results.append(torch.cat([ids.float(), weights.gather(1, order)], dim=1))
            first = last
        return torch.cat(results)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """indices and values of each document, by index; both empty where no weight is above 0."""
        segment, place = np.nonzero(scores[:, self._kept :] > 0)
        weights = scores[segment, self._kept + place]
        keys = inputs.segments.document[segment] * self._vocabulary + scores[segment, place].astype(np.int64)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        weights = np.maximum.reduceat(weights[order], starts) if len(keys) else weights
        document, index = np.divmod(keys[order][starts], self._vocabulary)
        largest = self._largest(document, weights)
        return _column(document[largest], index[largest], weights[largest], inputs.n_documents)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: cosine; 1 where both vectors are 0."""
        (our_keys, ours, our_length), (their_keys, theirs, their_length) = self._flat(values), self._flat(reference)
        keys, our_places, their_places = np.intersect1d(our_keys, their_keys, assume_unique=True, return_indices=True)
        dot = np.bincount(keys // self._vocabulary, ours[our_places] * theirs[their_places], minlength=len(values))
        both_zero = (our_length == 0) & (their_length == 0)
        cosine: Floats = np.where(both_zero, 1, dot / np.maximum(our_length * their_length, 1e-12)).astype(np.float32)
        return cosine

    def _pool(self, hidden_TH: Tensor, lengths: Ids, step: int) -> Tensor:
        """float32 [S, V]: the weights of these windows, `step` tokens at a time."""
        assert self._model is not None
        window = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(hidden_TH.device)
        weights_SV = torch.zeros(len(lengths), self._vocabulary, device=hidden_TH.device)
        for hidden, row in zip(torch.split(hidden_TH, step), torch.split(window, step), strict=True):
            logits = self._model(hidden[None]).logits[0]
            if self._strategy == "max":  # the logarithm keeps the order, so it can wait; and from 0 on a maximum is a relu
                weights_SV.scatter_reduce_(0, row[:, None].expand_as(logits), logits, "amax")
            else:
                weights_SV.index_add_(0, row, self._log(logits.relu()))
        return self._log(weights_SV) if self._strategy == "max" else weights_SV

    def _log(self, weights: Tensor) -> Tensor:
        for _ in range(self._logs):
            weights = weights.log1p()
        return weights

    def _largest(self, document: Ints, weights: Floats) -> Ints:
        """int64: which weights are among the largest of their documents, in order; of equals the first."""
        counts = np.bincount(document)
        if counts.max(initial=0) <= self._kept:
            return np.arange(len(document))
        order = np.lexsort((-weights, document))
        return np.sort(order[ranges(counts) < self._kept])

    def _flat(self, column: pa.Array) -> tuple[Ints, Floats, Floats]:
        """Keys (document and index in one) and weights of all documents, and their lengths, float32 [D]."""
        indices, values = (pc.struct_field(column, name) for name in ("indices", "values"))
        document = np.repeat(np.arange(len(column)), indices.value_lengths().fill_null(0).to_numpy())
        weights = values.flatten().to_numpy()
        keys = document * self._vocabulary + indices.flatten().to_numpy()
        return keys, weights, np.sqrt(np.bincount(document, weights**2, minlength=len(column)))


def _read_pooling(layout: Layout) -> tuple[str, int]:
    """Strategy and number of logarithms; those of a SparseEncoder made of the bare model, where its files say nothing."""
    if layout.splade_dir is None:
        return "max", 1
    file = layout.splade_dir / "config.json"
    config = read_json(file, dict) or {}
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in _STRATEGIES or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{file}: pooling_strategy {strategy!r} with activation_function {activation!r} is unknown; "
            f"there are {', '.join(_STRATEGIES)} and {', '.join(_ACTIVATIONS)}"
        )
    return strategy, _ACTIVATIONS[activation]


def _column(document: Ints, index: Ints, weights: Floats, documents: int) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(document, minlength=documents))]), pa.int32())
    indices = pa.ListArray.from_arrays(offsets, pa.array(index, pa.int32()))
    values = pa.ListArray.from_arrays(offsets, pa.array(weights, pa.float32()))
    return pa.StructArray.from_arrays([indices, values], fields=list(_TYPE))
