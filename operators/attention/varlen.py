"""Attention within the windows of a pack: no window sees another, and nothing is padded.

Letters of shapes: T tokens of the pack, N heads, D components of a head, B windows of one length n.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.packing import Pack

Projected = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each [T, N, D]."""

_BLOCK = 128
"""Queries that share one stretch of keys where attention is local: long enough for a kernel, short against long windows."""


@dataclass(frozen=True)
class Run:
    """Adjacent windows of one length: a rectangle without padding."""

    start: int
    """Its first token in the pack."""
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        """Where its tokens lie in the pack."""
        return slice(self.start, self.start + self.count * self.length)


@dataclass(frozen=True)
class Windows:
    """Where the windows of a pack lie. Kernels that ask on the host find it there: reading it back would stall the device."""

    cu_seqlens: Tensor
    """int32 [S + 1], on the device."""
    ends: tuple[int, ...]
    """Where each window ends."""
    runs: tuple[Run, ...]
    """All windows that have tokens, in order."""
    max_length: int

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> Windows:
        """Those of `pack`. Packs are sorted by length, so runs are few."""
        lengths = pack.lengths
        firsts = np.flatnonzero(np.diff(lengths, prepend=-1))
        counts = np.diff(firsts, append=len(lengths))
        runs = zip(pack.cu_seqlens[firsts].tolist(), counts.tolist(), lengths[firsts].tolist(), strict=True)
        return cls(
            torch.from_numpy(pack.cu_seqlens).to(device),
            tuple(pack.cu_seqlens[1:].tolist()),
            tuple(Run(*run) for run in runs if run[2]),
            pack.max_length,
        )


def attend(qkv: Projected, windows: Windows, scale: float, reach: int | None = None) -> Tensor:
    """softmax(scale q k^T) v within each window, [T, N, D].

    `reach`: tokens that a token sees to each side, besides itself; None: its whole window."""
    queries = qkv[0]
    if queries.device.type == "npu":
        return _attend_npu(qkv, windows, scale, reach)
    if queries.device.type == "cuda" and _flash_takes(queries):
        return _attend_cuda(qkv, windows, scale, reach)
    attended = queries.new_empty(queries.shape)
    for run in windows.runs:
        q, k, v = (torch.unflatten(x[run.tokens], 0, (run.count, run.length)).transpose(1, 2) for x in qkv)
        attended[run.tokens] = _attend_run((q, k, v), scale, reach).transpose(1, 2).flatten(0, 1)
    return attended


def _attend_run(qkv: Projected, scale: float, reach: int | None) -> Tensor:
    """Attention on [B, N, n, D]. Local attention goes in blocks of queries, so that its cost is linear in n."""
    q, k, v = qkv
    length = q.shape[-2]
    if reach is None or length <= reach + 1:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    positions = torch.arange(length, device=q.device)
    blocks = []
    for first in range(0, length, _BLOCK):
        mine = slice(first, first + _BLOCK)
        seen = slice(max(0, first - reach), first + _BLOCK + reach)
        near = (positions[mine, None] - positions[None, seen]).abs() <= reach
        blocks.append(
            F.scaled_dot_product_attention(q[..., mine, :], k[..., seen, :], v[..., seen, :], attn_mask=near, scale=scale)
        )
    return torch.cat(blocks, dim=-2)


def _flash_takes(queries: Tensor) -> bool:
    """By torch's own rules: half precision, heads of a multiple of 8, an Ampere GPU or a newer one."""
    fits = queries.dtype != torch.float32 and queries.shape[-1] % 8 == 0
    return fits and torch.cuda.get_device_capability(queries.device) >= (8, 0)


def _attend_cuda(qkv: Projected, windows: Windows, scale: float, reach: int | None) -> Tensor:
    """FlashAttention-2 as built into torch. The function above it, torch.nn.attention.varlen, has no windows before 2.11."""
    width = -1 if reach is None else reach
    cu_seqlens, longest = windows.cu_seqlens, windows.max_length
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        *qkv,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        0.0,  # dropout
        False,  # causal
        False,  # debug mask
        scale=scale,
        window_size_left=width,
        window_size_right=width,
    )[0]
    return attended


def _attend_npu(qkv: Projected, windows: Windows, scale: float, reach: int | None) -> Tensor:
    """CANN's fused attention in its layout for packs, which wants the ends of the windows as numbers of the host."""
    torch_npu = importlib.import_module("torch_npu")
    ends = list(windows.ends)
    band = {}
    if reach is not None:
        band = {"sparse_mode": 4, "pre_tockens": reach, "next_tockens": reach, "atten_mask": _band_mask(qkv[0].device)}
    attended: Tensor = torch_npu.npu_fusion_attention(
        *qkv,
        qkv[0].shape[1],
        input_layout="TND",
        scale=scale,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        **band,
    )[0]
    return attended


@functools.cache
def _band_mask(device: torch.device) -> Tensor:
    """The mask that CANN wants with its band mode, whatever the lengths."""
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)
