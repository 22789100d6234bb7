"""DeBERTa's disentangled attention within the windows of a pack (arXiv 2006.03654, equation 4).

To q.k it adds two terms that depend on the distance d = i - j of query i and key j alone:
    c2p[i, j] = q_i . K[d]      p2c[i, j] = k_j . Q[d]
K and Q being projected position embeddings. The model looks these up by slot, many far distances sharing one; here they are
laid out by distance first, once for a pack, so that for a window of n tokens both terms are one product with 2n - 1 rows, seen
through a skewed view: nothing is gathered for each pair of tokens. Letters of shapes: as in `varlen`; R slots.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from operators.attention import npu
from operators.attention.varlen import Projected, Windows

_SCORES = 2**26
_SCORES_ON_CPU = 2**22
"""Numbers in one tensor of scores at most, but for one window at least: what fills an accelerator without filling its memory, and
what stays in a CPU's caches (a quarter faster than 2**25 with windows of 512 tokens)."""


@dataclass(frozen=True)
class Positions:
    """The position embeddings of one layer, projected, times the scale of its scores; None where the model lacks the term."""

    keys: Tensor | None
    """[N, R, D], for c2p."""
    queries: Tensor | None
    """[N, R, D], for p2c."""

    def by_distance(self, slots: Tensor) -> Positions:
        """[N, 2n - 1, D] for windows of up to n tokens; `slots`: int64 [2n - 1], the slots of distances 1 - n to n - 1.

        Keys are laid out from the farthest token before the query to the farthest behind it, queries the other way."""
        return Positions(
            None if self.keys is None else self.keys[:, slots.flip(0)],
            None if self.queries is None else self.queries[:, slots],
        )

    def shorten(self, length: int) -> Positions:
        """Of embeddings by distance, those that windows of `length` tokens need."""
        return Positions(_middle(self.keys, length), _middle(self.queries, length))


def attend(qkv: Projected, windows: Windows, positions: Positions, scale: float) -> Tensor:
    """softmax(scale q k^T + c2p + p2c) v within each window, [T, N, D]. `positions` are laid out by distance."""
    if _kernel_takes(qkv[0]):
        fused: Tensor = _kernel().attend(qkv, windows, positions, scale)
        return fused
    return attend_strided(qkv, windows, positions, scale)


def attend_strided(qkv: Projected, windows: Windows, positions: Positions, scale: float) -> Tensor:
    """As `attend`, on every device."""
    attended = qkv[0].new_empty(qkv[0].shape)
    scores = _SCORES_ON_CPU if attended.device.type == "cpu" else _SCORES
    for run in windows.runs:
        length = run.length
        near = positions.shorten(length)
        at_once = max(1, scores // (attended.shape[1] * length * 2 * length))
        for start in range(run.tokens.start, run.tokens.stop, at_once * length):
            tokens = slice(start, min(start + at_once * length, run.tokens.stop))
            # Heads first: the products with the positions are then over all windows at once.
            q, k, v = (torch.unflatten(x[tokens].transpose(0, 1), 1, (-1, length)) for x in qkv)
            bias = _position_scores(q, k, near)
            if npu.is_npu(q):
                mixed = npu.attend_biased((q, k, v), bias, scale)
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
            attended[tokens] = mixed.flatten(1, 2).transpose(0, 1)
    return attended


def _kernel_takes(queries: Tensor) -> bool:
    """Half precision on an Ampere GPU or a newer one, and heads that fill a tile of tensor cores and still fit the chip."""
    fits = queries.dtype in (torch.float16, torch.bfloat16) and queries.shape[-1] in (16, 32, 64, 128)
    if not fits or queries.device.type != "cuda" or _kernel() is None:
        return False
    return torch.cuda.get_device_capability(queries.device) >= (8, 0)


@functools.cache
def _kernel() -> Any:
    """The module of the fused kernel; None without Triton, which torch brings for CUDA on Linux alone, and without the C
    compiler that Triton calls at a kernel's first launch."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    found = importlib.util.find_spec("triton") and compiler
    return importlib.import_module("operators.attention.triton_disentangled") if found else None


def _position_scores(q: Tensor, k: Tensor, positions: Positions) -> Tensor | None:
    """c2p + p2c, [N, B, n, n], of q and k [N, B, n, D]; None where there is neither."""
    c2p = None if positions.keys is None else _skew(q, positions.keys)
    p2c = None if positions.queries is None else _skew(k, positions.queries).transpose(-1, -2)
    if c2p is None or p2c is None:
        return p2c if c2p is None else c2p
    return c2p + p2c


def _skew(x: Tensor, table: Tensor) -> Tensor:
    """[N, B, n, n] with element [i, j] = x[i] . table[j - i + n - 1], of [N, B, n, D] and [N, 2n - 1, D]."""
    heads, _, length, _ = x.shape
    products = torch.bmm(x.flatten(1, 2), table.transpose(1, 2)).view(heads, -1, length, 2 * length - 1)
    # One step down and one to the right lead to the same row of the table: a view whose rows start one number earlier each.
    outer, window, row, _ = products.stride()
    return products.as_strided((*products.shape[:3], length), (outer, window, row - 1, 1), length - 1)


def _middle(table: Tensor | None, length: int) -> Tensor | None:
    if table is None:
        return None
    center = table.shape[1] // 2  # distance 0
    return table[:, center - length + 1 : center + length]
