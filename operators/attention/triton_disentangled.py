"""Disentangled attention on CUDA: one kernel for all windows of similar lengths, whatever their number.

The products with the positions come first, [N, T, W], with a column for each distance. A tile of the kernel reads them along
straight lines: c2p[i, j] in row i at column j - i, p2c[i, j] in row j at column i - j, counted from distance 0. So there is no
table to look slots up in, and threads side by side read numbers side by side. Letters of shapes: as in `varlen`; W columns.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from operators.attention.disentangled import Positions
from operators.attention.varlen import Group, Projected, Windows

_BLOCK = 64
"""Queries, and keys, of one tile at most; windows that are shorter than half of it take smaller tiles."""
_SCORES = 2**26
"""Numbers in one tensor of products at most, but for one window at least: 128 MiB, and there may be two of them."""
_ALIGNED = 16
"""Columns come in multiples of it: rows start where tensor cores like it, and one compiled kernel serves all widths."""

_LOG2_E = tl.constexpr(math.log2(math.e))


def attend(qkv: Projected, windows: Windows, positions: Positions, scale: float) -> Tensor:
    """softmax(scale q k^T + c2p + p2c) v within each window, [T, N, D], as `disentangled.attend`; D is a power of two from 16."""
    attended = torch.empty(qkv[0].shape, dtype=qkv[0].dtype, device=qkv[0].device)
    for group in windows.groups:
        at_once = max(1, _SCORES // (attended.shape[1] * group.length * _columns(group.length)))
        for first in range(group.first, group.last, at_once):
            part = Group(first, min(first + at_once, group.last), group.length)
            _attend_group((qkv, attended), windows, part, positions, scale)
    return attended


def _attend_group(tensors: tuple[Projected, Tensor], windows: Windows, group: Group, positions: Positions, scale: float) -> None:
    """Fill in the rows of the windows of `group`; `tensors`: queries, keys and values, and the result."""
    (q, k, v), attended = tensors
    start = windows.ends[group.first - 1] if group.first else 0
    tokens = slice(start, windows.ends[group.last - 1])
    c2p = None if positions.keys is None else _products(q[tokens], positions.keys, group.length)
    p2c = None if positions.queries is None else _products(k[tokens], positions.queries, group.length)
    products = next((x for x in (c2p, p2c) if x is not None), q.transpose(0, 1))
    block = min(_BLOCK, max(16, triton.next_power_of_2(group.length)))
    tiles = triton.cdiv(group.length, block)
    _kernel[((group.last - group.first) * tiles, q.shape[1])](
        *(q, k, v, attended),
        *(products if c2p is None else c2p, products if p2c is None else p2c),
        *(windows.cu_seqlens, group.first, start, tiles, group.length - 1, scale),
        *(stride for x in (q, k, v, attended) for stride in x.stride()[:2]),
        *products.stride()[:2],
        D=q.shape[2],
        BLOCK=block,
        C2P=c2p is not None,
        P2C=p2c is not None,
        num_warps=block // 16,
        num_stages=2,
    )


def _products(x: Tensor, table: Tensor, length: int) -> Tensor:
    """[N, T, W] of x [T, N, D] and the rows of a table by distance that windows of up to `length` tokens need.

    A table that reaches further lends rows to fill up the last columns: nobody reads these."""
    first = table.shape[1] // 2 - length + 1
    return torch.bmm(x.transpose(0, 1), table[:, first : first + _columns(length)].transpose(1, 2))


def _columns(length: int) -> int:
    """W for windows of up to `length` tokens."""
    return int(triton.cdiv(2 * length - 1, _ALIGNED)) * _ALIGNED


# What differs from pack to pack must not choose among compiled variants.
@triton.jit(do_not_specialize=["first", "start", "tiles", "center"], do_not_specialize_on_alignment=["cu_seqlens"])
def _kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    attended: tl.tensor,
    c2p: tl.tensor,
    p2c: tl.tensor,
    cu_seqlens: tl.tensor,
    first: tl.tensor,
    start: tl.tensor,
    tiles: tl.tensor,
    center: tl.tensor,
    scale: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    o_token: tl.tensor,
    o_head: tl.tensor,
    p_head: tl.tensor,
    p_token: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    C2P: tl.constexpr,
    P2C: tl.constexpr,
) -> None:
    """One tile of queries of one head against all keys of its window, with a running softmax (base 2) in float32.

    `first`: the first window; `start`: the token of the pack that the first row of the products is of; `tiles`: in the longest
    window; `center`: the column of distance 0. The rest: strides, those of the products last."""
    window = first + tl.program_id(0) // tiles
    head = tl.program_id(1).to(tl.int64)
    begin = tl.load(cu_seqlens + window).to(tl.int64)
    length = (tl.load(cu_seqlens + window + 1) - begin).to(tl.int32)
    from_query = tl.program_id(0) % tiles * BLOCK
    if from_query >= length:  # a shorter window than the longest
        return
    i = from_query + tl.arange(0, BLOCK)
    d = tl.arange(0, D)
    queried = i < length
    queries += begin * q_token + head * q_head
    keys += begin * k_token + head * k_head
    values += begin * v_token + head * v_head
    attended += begin * o_token + head * o_head
    c2p += (begin - start) * p_token + head * p_head
    p2c += (begin - start) * p_token + head * p_head
    q = tl.load(queries + i[:, None] * q_token + d[None, :], mask=queried[:, None], other=0.0)
    mixed = tl.zeros([BLOCK, D], tl.float32)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for from_key in range(0, length, BLOCK):
        j = from_key + tl.arange(0, BLOCK)
        there = j < length
        k = tl.load(keys + j[:, None] * k_token + d[None, :], mask=there[:, None], other=0.0)
        v = tl.load(values + j[:, None] * v_token + d[None, :], mask=there[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        if C2P:
            at = c2p + i[:, None] * p_token + (j[None, :] - i[:, None] + center)
            scores += tl.load(at, mask=queried[:, None] & there[None, :], other=0.0).to(tl.float32)
        if P2C:  # read as it lies, a row for each key, and turned afterwards
            at = p2c + j[:, None] * p_token + (i[None, :] - j[:, None] + center)
            scores += tl.trans(tl.load(at, mask=there[:, None] & queried[None, :], other=0.0)).to(tl.float32)
        scores = tl.where(there[None, :], scores * _LOG2_E, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weights, 1)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher
    mixed = (mixed / total[:, None]).to(attended.dtype.element_ty)
    tl.store(attended + i[:, None] * o_token + d[None, :], mixed, mask=queried[:, None])
