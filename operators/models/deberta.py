"""Packed forward of DeBERTa v1, v2 and v3: the model's own modules in a loop of our own, as they take no attention function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from operators.attention.disentangled import Positions, attend
from operators.attention.varlen import Projected, Windows
from operators.models.packed import as_batch, position_ids
from operators.packing import Pack, token_types

_REACH = 64
"""Positions are laid out by distance for windows of a multiple of it."""


class Deberta:
    """A DebertaModel or DebertaV2Model of transformers, in evaluation mode."""

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        self._model = model
        embeddings = model.encoder.get_rel_embedding()
        self._attention = [_Attention(layer.attention.self, embeddings) for layer in model.encoder.layer]
        self._convolution = getattr(model.encoder, "conv", None)  # v2 xlarge and xxlarge
        self._laid_out: tuple[int, list[Positions]] = (0, [])

    def __call__(self, pack: Pack) -> Tensor:
        """float [T, H]"""
        device = self._model.device
        windows = Windows.of(pack, device)
        positions = self._positions_for(windows.max_length)
        embedded: Tensor = self._model.embeddings(
            input_ids=as_batch(pack.input_ids, device),
            token_type_ids=as_batch(token_types(pack), device),
            position_ids=as_batch(position_ids(pack), device),
        )[0]
        hidden = embedded
        for index, (layer, attention) in enumerate(zip(self._model.encoder.layer, self._attention, strict=True)):
            attended = layer.attention.output(attention(hidden, windows, positions[index]), hidden)
            hidden = layer.output(layer.intermediate(attended), attended)
            if index == 0 and self._convolution is not None:
                hidden = _convolve(self._convolution, embedded, hidden, windows)
        return hidden

    def _positions_for(self, length: int) -> list[Positions]:
        """Those of each layer, by distance, for windows longer than `length`: made once, and anew when longer windows come."""
        reach, positions = self._laid_out
        if length >= reach:
            reach = (length // _REACH + 1) * _REACH
            slots = _slots(self._model.config, reach).to(self._model.device)
            positions = [attention.positions.by_distance(slots) for attention in self._attention]
            self._laid_out = reach, positions  # at once, for several threads may be here
        return positions


class _Attention:
    """Disentangled attention with the weights of one layer; `module`: its DisentangledSelfAttention, of v1 or of v2 and v3."""

    def __init__(self, module: Any, embeddings: Tensor | None) -> None:
        self._module = module
        self._first = hasattr(module, "in_proj")
        terms = module.pos_att_type
        count = len(terms) if self._first else ("c2p" in terms) + ("p2c" in terms)
        self._scale = 1 / math.sqrt(module.attention_head_size * (1 + count))
        if embeddings is None:
            self.positions = Positions(None, None)
        else:
            key, query = self._projections()
            self.positions = Positions(
                self._project_positions(embeddings, key) if "c2p" in terms else None,
                self._project_positions(embeddings, query) if "p2c" in terms else None,
            )

    def __call__(self, hidden_TH: Tensor, windows: Windows, positions: Positions) -> Tensor:
        """float [T, H]; `positions`: this layer's, laid out by distance."""
        return attend(self._project(hidden_TH), windows, positions, self._scale).flatten(1)

    def _project(self, hidden_TH: Tensor) -> Projected:
        module, shape = self._module, (self._module.num_attention_heads, -1)
        if self._first:
            # One projection, whose rows are queries, keys and values of the first head, then of the next.
            q, k, v = module.in_proj(hidden_TH).unflatten(1, shape).chunk(3, dim=-1)
            return q + module.q_bias.view(shape), k, v + module.v_bias.view(shape)
        projections = (module.query_proj, module.key_proj, module.value_proj)
        q, k, v = (torch.unflatten(projection(hidden_TH), 1, shape) for projection in projections)
        return q, k, v

    def _projections(self) -> tuple[Any, Any]:
        """The modules that make position embeddings keys and queries; None where there is no such term."""
        module = self._module
        if self._first:
            return getattr(module, "pos_proj", None), getattr(module, "pos_q_proj", None)
        if module.share_att_key:
            return module.key_proj, module.query_proj
        return getattr(module, "pos_key_proj", None), getattr(module, "pos_query_proj", None)

    def _project_positions(self, embeddings: Tensor, projection: Any) -> Tensor:
        """[N, R, D], computed in float32 and scaled there: nothing is rounded twice, and fp16 does not overflow later."""
        bias = None if projection.bias is None else projection.bias.float()
        projected = F.linear(embeddings.float(), projection.weight.float(), bias) * self._scale
        by_head = torch.unflatten(projected, 1, (self._module.num_attention_heads, -1)).transpose(0, 1)
        return by_head.to(embeddings.dtype).contiguous()


def _slots(config: Any, length: int) -> Tensor:
    """int64 [2 * length - 1]: the position embedding of each distance from 1 - length to length - 1."""
    longest = getattr(config, "max_relative_positions", -1)
    if longest < 1:
        longest = config.max_position_embeddings
    buckets = getattr(config, "position_buckets", -1)
    distances = torch.arange(1 - length, length)
    if buckets > 0:
        distances = make_log_bucket_position(distances, buckets, longest).long()
    span = buckets if buckets > 0 else longest
    return (distances + span).clamp(0, 2 * span - 1)


def _convolve(convolution: Any, embedded: Tensor, hidden: Tensor, windows: Windows) -> Tensor:
    """v2's convolution, windows of one length at a time, so that it does not reach into the neighbours. [T, H]"""
    convolved = torch.empty_like(hidden)
    for run in windows.runs:
        shape = (run.count, run.length)
        x, residual = (torch.unflatten(states[run.tokens], 0, shape) for states in (embedded, hidden))
        no_padding = torch.ones(shape, dtype=torch.long, device=hidden.device)
        convolved[run.tokens] = convolution(x, residual, no_padding).flatten(0, 1)
    return convolved
