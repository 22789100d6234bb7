"""Attention on Ascend NPUs: all calls of torch_npu.npu_fusion_attention, CANN's fused kernel.

They follow torch_npu 2.13's documentation and stay within the limits that it states; docs/ascend.md says what was tested and
how. Numbers that the kernel wants on the host come from `Windows`. Letters of shapes: as in `varlen`.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from operators.attention.varlen import Projected, Windows

BAND_MODE = False
"""Whether local attention goes through CANN's band mode: one call for a pack and no masks of one's own. CANN documents that mode,
but its compressed mask has a meaning that shows on a device alone. False makes the call with a whole mask that torch_npu makes
itself for scaled_dot_product_attention. Before setting it to True run this module's tests on the device."""

_WINDOWS = 1_000
"""Windows in one call at most: the documentation says 1K where it is strictest."""

_BLOCK = 256
"""Queries that share one stretch of keys where attention is local: masks and cost stay linear in the length of a window."""

_MASKS = 256
"""Masks that are kept, of a few shapes for each length of windows: 100 kB each for a reach of 64."""


def is_npu(x: Tensor) -> bool:
    """Whether `x` is on an NPU."""
    return x.device.type == "npu"


def attend(qkv: Projected, windows: Windows, scale: float, reach: int | None = None) -> Tensor:
    """softmax(scale q k^T) v within each window, [T, N, D]; `reach` as in `varlen.attend`."""
    if reach is None or windows.max_length <= reach + 1:
        return _attend_pack(qkv, windows, scale=scale)
    if BAND_MODE:
        mask = _compressed_mask(qkv[0].device)
        return _attend_pack(qkv, windows, scale=scale, sparse_mode=4, pre_tockens=reach, next_tockens=reach, atten_mask=mask)
    return _attend_blocks(qkv, windows, scale, reach)


def attend_biased(qkv: Projected, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v, [N, B, n, D] like each of `qkv`; `bias`: [N, B, n, n], None for none.

    CANN's formula is softmax(scale (q k^T + pse)), and one of its examples softmax(scale q k^T + pse). With the scale in the
    queries both are the same, and no bias has to be divided by the scale, which could leave the range of fp16."""
    q, k, v = (x.transpose(0, 1) for x in qkv)
    pse = None if bias is None else bias.transpose(0, 1).contiguous()
    return _fused((q * scale, k, v), "BNSD", scale=1.0, pse=pse).transpose(0, 1)


def _attend_pack(qkv: Projected, windows: Windows, **arguments: Any) -> Tensor:
    """A pack as it is, without padding."""
    ends = sorted({*windows.ends} - {0})  # of windows that have tokens
    parts, start = [], 0
    for first in range(0, len(ends), _WINDOWS):
        chosen = ends[first : first + _WINDOWS]
        lengths = [end - start for end in chosen]  # summed up, as the kernel wants them
        q, k, v = (x[start : chosen[-1]] for x in qkv)
        parts.append(_fused((q, k, v), "TND", actual_seq_qlen=lengths, actual_seq_kvlen=lengths, **arguments))
        start = chosen[-1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_blocks(qkv: Projected, windows: Windows, scale: float, reach: int) -> Tensor:
    """Local attention, each block of queries with the keys that it can see and a mask for these."""
    attended = qkv[0].new_empty(qkv[0].shape)
    for run in windows.runs:
        q, k, v = (torch.unflatten(x[run.tokens], 0, (run.count, run.length)).transpose(1, 2) for x in qkv)
        blocks = []
        for first in range(0, run.length, _BLOCK):
            mine = range(first, min(first + _BLOCK, run.length))
            seen = range(max(0, first - reach), min(mine.stop + reach, run.length))
            mask = _unseen(q.device, len(mine), len(seen), mine.start - seen.start, reach)
            near = (q[:, :, mine.start : mine.stop], k[:, :, seen.start : seen.stop], v[:, :, seen.start : seen.stop])
            blocks.append(_fused(near, "BNSD", scale=scale, atten_mask=mask))
        attended[run.tokens] = torch.cat(blocks, dim=2).transpose(1, 2).flatten(0, 1)
    return attended


def _fused(qkv: Projected, layout: str, **arguments: Any) -> Tensor:
    """The kernel; heads are the second axis in both layouts, TND and BNSD."""
    torch_npu = importlib.import_module("torch_npu")
    attended: Tensor = torch_npu.npu_fusion_attention(*qkv, qkv[0].shape[1], input_layout=layout, **arguments)[0]
    return attended


@functools.cache
def _compressed_mask(device: torch.device) -> Tensor:
    """The mask that CANN wants with its band mode, whatever the lengths."""
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)


@functools.lru_cache(_MASKS)
def _unseen(device: torch.device, queries: int, keys: int, before: int, reach: int) -> Tensor:
    """bool [queries, keys], True where a key is hidden; the first query stands at key number `before`."""
    distances = torch.arange(queries, device=device)[:, None] + before - torch.arange(keys, device=device)
    return distances.abs() > reach
