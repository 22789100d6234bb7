"""Attention within the windows of a pack: no window sees another, and nothing is padded.

Letters of shapes: T tokens of the pack, N heads, D components of a head, B windows of one length n.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.attention import npu
from operators.packing import Pack
from operators.transfer import to_device

Projected = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each [T, N, D]."""

_SHORT = 64
"""Windows of up to as many tokens are all alike to a kernel that works in tiles of that size."""

_SCORES_IN_CACHE = 2**18
"""Scores that a CPU takes at once in half precision, but those of one window at least: they then stay in a core's cache."""
_LONGEST_PRODUCT = 512
"""Tokens of a window from which on torch's fused kernel is faster, for it never holds all scores."""

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
class Group:
    """Adjacent windows of similar lengths, those from number `first` to before `last` of the pack."""

    first: int
    last: int
    length: int
    """Tokens of the longest. No other is less than half as long, unless all are short."""

    def takes(self, length: int) -> bool:
        """Whether windows of `length` tokens may join."""
        return length <= self.length and (self.length <= _SHORT or 2 * length >= self.length)


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
            to_device(pack.cu_seqlens, device),
            tuple(pack.cu_seqlens[1:].tolist()),
            tuple(Run(*run) for run in runs if run[2]),
            pack.max_length,
        )

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """All windows that have tokens, in order: what shares room as long as the longest without wasting much."""
        groups: list[Group] = []
        for run in self.runs:
            first = bisect.bisect_right(self.ends, run.start)
            if groups and groups[-1].takes(run.length):
                groups[-1] = replace(groups[-1], last=first + run.count)
            else:
                groups.append(Group(first, first + run.count, run.length))
        return tuple(groups)


def attend(qkv: Projected, windows: Windows, scale: float, reach: int | None = None) -> Tensor:
    """softmax(scale q k^T) v within each window, [T, N, D].

    `reach`: tokens that a token sees to each side, besides itself; None: its whole window."""
    queries = qkv[0]
    if npu.is_npu(queries):
        return npu.attend(qkv, windows, scale, reach)
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
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= _LONGEST_PRODUCT:
            return _attend_products(qkv, scale)
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


def _attend_products(qkv: Projected, scale: float) -> Tensor:
    """The formula as it stands, a few windows at a time: torch's fused kernel is no faster in half precision than in single."""
    attended = torch.empty_like(qkv[0])
    _, heads, length, _ = attended.shape
    at_once = max(1, _SCORES_IN_CACHE // (heads * length * length))
    for start in range(0, len(attended), at_once):
        q, k, v = (x[start : start + at_once].flatten(0, 1) for x in qkv)
        shares = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=scale).softmax(-1)
        attended[start : start + at_once] = torch.unflatten(torch.bmm(shares, v), 0, (-1, heads))
    return attended


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
