"""Embeddings: the model's own pooling for each segment, aggregated to a document, then the model's later modules once.

A document that fits one window gets the vector that sentence-transformers' `encode` gives it. With `spans`, each given span
of the text gets a vector of its own by late pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field, StrictBool, model_validator
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from operators import aggregation, encoding
from operators.aggregation import Floats
from operators.inputs import Inputs
from operators.models.layout import Dense, Layout, Module, Normalize
from operators.packing import Pack
from operators.pooling import Spans, find_spans, join_spans, pool, pool_spans
from operators.prompts import PromptConfig, choose_prompt
from operators.segmentation import Flags, Ints

_AGGREGATES: dict[str, aggregation.Aggregate] = {"mean": aggregation.mean, "max": aggregation.maximum, "first": aggregation.first}


class Config(PromptConfig):
    """Settings of the head, beside `head` and `model` in the task."""

    dim: Annotated[int, Field(gt=0)] | None = None
    """Keep the first `dim` components (Matryoshka); None: all."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """int8: components times 127 / r, rounded, for vectors of length 1; r is the same for all texts, see `int8_range`."""
    normalize: Literal["auto"] | StrictBool = "auto"
    """To length 1 at the end; auto: again after `dim` if the model normalizes."""
    aggregate: Literal["mean", "max", "first", "none"] = "mean"
    """How segments become the document; none: a list of them, each with its span."""

    spans: str | None = None
    """A column of lists of [start, end] in code points: with `aggregate: none`, one vector for each of these spans instead."""

    @model_validator(mode="after")
    def _spans_are_not_aggregated(self) -> Config:
        if self.spans is not None and self.aggregate != "none":
            raise ValueError(f"spans gives a list of vectors, so it needs aggregate: none, not {self.aggregate}")
        return self


class Head(encoding.Head):
    """ValueError where `config` does not fit the model that `layout` describes."""

    def __init__(self, config: Config, layout: Layout) -> None:
        if layout.splade_dir is not None:
            raise ValueError("the model gives sparse vectors; its head is sparse_embedding")
        if not layout.pooling:
            raise ValueError("the model is a cross-encoder; its head is pair_score")
        if config.spans is not None and layout.pooling != ("mean",):
            pooling = ", ".join(layout.pooling)
            raise ValueError(f"spans are pooled by mean, but the model's pooling is {pooling}; choose a model that pools by mean")
        if config.dim is not None and config.dim > layout.dimension:
            raise ValueError(f"dim {config.dim} is more than the model's {layout.dimension} components")
        self._config = config
        self._layout = layout
        self._dim = config.dim or layout.dimension
        cut = self._dim < layout.dimension
        self._normalize = layout.normalizes and cut if config.normalize == "auto" else config.normalize
        self._modules: list[Callable[[Tensor], Tensor]] = []
        self._device = torch.device("cpu")
        if config.dtype == "int8" and not (self._normalize or (layout.normalizes and not cut)):
            raise ValueError("dtype int8 is for vectors of length 1; set normalize: true, or choose float16")
        self._scale = int8_range(self._dim) / 127
        vector = _vector_type(config.dtype, self._dim, self._scale)
        self._span_fields = [pa.field("start", pa.int32()), pa.field("end", pa.int32()), pa.field("vector", vector)]
        self.wants_offsets = config.aggregate == "none"
        self.type: pa.DataType = pa.list_(pa.struct(self._span_fields)) if self.wants_offsets else vector
        self.prompt = choose_prompt(config, layout)
        self.width = layout.pooled_size + (config.spans is not None)
        self.wants_text = config.spans is not None
        self.columns = {config.spans: pa.list_(pa.list_(pa.int64()))} if config.spans is not None else {}
        self._found: tuple[Inputs, Spans] | None = None

    def load(self, device: torch.device) -> None:
        """Load the weights of the modules behind the pooling to `device`, in float32."""
        self._device = device
        self._modules = [_function(module, device) for module in self._layout.modules]

    def rows(self, inputs: Inputs) -> Ints:
        """int64 [S]: one for each segment, or for each span that it owns tokens of."""
        return self._spans(inputs).part_counts if self._config.spans is not None else super().rows(inputs)

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [R, P]: the model's pooling of each segment, or the sums and counts of spans' parts."""
        if self._config.spans is not None:
            return pool_spans(hidden_TH, pack, self._spans(inputs))
        excluded = 0 if self._layout.include_prompt else pack.prompt_length
        return pool(hidden_TH, pack, self._layout.pooling, excluded)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """One vector for each document, or a list of its segments' or spans' vectors; null where one is not finite, and where
        a document's spans are no spans of its text."""
        segments = inputs.segments
        if self._config.spans is not None:
            return self._finish_spans(scores, self._spans(inputs))
        if self._config.aggregate != "none":
            vectors = self._vectors(_AGGREGATES[self._config.aggregate](scores, segments))
            return self._array(vectors, _finite(vectors))
        vectors = self._vectors(scores)
        finite = _finite(vectors)
        broken = np.bincount(segments.document[~finite], minlength=len(segments.n_segments)) > 0
        items = [*inputs.window_spans().values(), self._array(vectors, finite)]
        return self._lists(items, segments.n_segments, broken | (segments.n_segments == 0))

    def _finish_spans(self, sums: Floats, spans: Spans) -> pa.Array:
        """A list for each document with the vector of each span, null in a span without tokens."""
        means, found = join_spans(sums, spans)
        vectors = self._vectors(means)
        finite = _finite(vectors)
        documents = len(spans.valid)
        broken = np.bincount(spans.document[~finite], minlength=documents) > 0
        start, end = (pa.array(column.astype(np.int32)) for column in spans.bounds.T)
        counts = np.bincount(spans.document, minlength=documents)
        return self._lists([start, end, self._array(vectors, finite & found)], counts, broken | ~spans.valid)

    def _lists(self, items: list[pa.Array], counts: Ints, null: Flags) -> pa.Array:
        """start, end and vector of each item as lists of `counts` (int64 [D]) items."""
        structs = pa.StructArray.from_arrays(items, fields=self._span_fields)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, structs, type=self.type, mask=pa.array(null))

    def _spans(self, inputs: Inputs) -> Spans:
        """The spans of these inputs, found once for all their packs."""
        assert self._config.spans is not None
        if self._found is None or self._found[0] is not inputs:
            self._found = inputs, find_spans(inputs, self._config.spans)
        return self._found[1]

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: cosine; where a document has several vectors the lowest one, and 1 where it has none."""
        vectors = [_stacked(column) for column in (values, reference)]
        lengths = np.linalg.norm(vectors[0], axis=1) * np.linalg.norm(vectors[1], axis=1)
        cosine: Floats = (vectors[0] * vectors[1]).sum(1) / np.maximum(lengths, 1e-12)
        if self._config.aggregate != "none":
            return cosine
        lowest = np.ones(len(values), np.float32)
        document = pc.list_parent_indices(values).filter(pc.struct_field(values.flatten(), "vector").is_valid())
        np.minimum.at(lowest, document.to_numpy(), cosine)
        return lowest

    def _vectors(self, pooled: Floats) -> Floats:
        """The model's later modules, `dim`, and `normalize`, on [N, P], in float16 where that is the type, and in whole numbers
        (not yet of that type, so that what is not finite still shows) for int8."""
        x = torch.from_numpy(pooled).to(self._device)
        for module in self._modules:
            x = module(x)
        x = x[:, : self._dim]
        if self._normalize:
            x = F.normalize(x, dim=-1)
        if self._config.dtype == "int8":
            x = (x / self._scale).round().clamp(-127, 127)
        vectors: Floats = x.to(torch.float16 if self._config.dtype == "float16" else torch.float32).cpu().numpy()
        return vectors

    def _array(self, vectors: Floats, valid: Flags) -> pa.Array:
        type_ = self._span_fields[2].type
        flat = np.where(valid[:, None], vectors, 0).reshape(-1).astype(type_.value_type.to_pandas_dtype())
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, type_.value_type), type=type_, mask=pa.array(~valid))


def int8_range(dim: int) -> float:
    """The largest component that int8 holds, larger ones being cut: 12 / sqrt(dim), a dozen times what components of vectors of
    length 1 are on average, and at most 1.

    It depends on nothing but `dim`, so that one text has one vector in every corpus and batch. Rounding then costs about 0.0004
    of the cosine."""
    return float(min(1.0, 12 / np.sqrt(dim)))


def _vector_type(dtype: str, dim: int, scale: float) -> pa.DataType:
    """Of int8 the items carry the scale in their metadata: component = value * scale."""
    item = pa.field("item", pa.type_for_alias(dtype), metadata={"scale": repr(scale)} if dtype == "int8" else None)
    return pa.list_(item, dim)


def _function(module: Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A module of the layout with its weights."""
    if isinstance(module, Normalize):
        return F.normalize
    weights = {name: tensor.float().to(device) for name, tensor in load_file(module.directory / "model.safetensors").items()}
    if isinstance(module, Dense):
        activation = getattr(torch.nn, module.activation)()
        return lambda x: activation(F.linear(x, weights["linear.weight"], weights["linear.bias"] if module.bias else None))
    return lambda x: F.layer_norm(x, (module.dimension,), weights["norm.weight"], weights["norm.bias"])


def _finite(vectors: Floats) -> Flags:
    """bool [N]: rows without infinities and NaN."""
    finite: Flags = np.logical_and.reduce(np.isfinite(vectors), axis=1)
    return finite


def _stacked(column: pa.Array) -> Floats:
    """float32 [N, dim]: all vectors of a column, of documents or of their segments."""
    if not pa.types.is_fixed_size_list(column.type):
        column = pc.struct_field(column.flatten(), "vector")
    vectors: Floats = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return vectors.reshape(-1, column.type.list_size)
