"""Top-k attention: each query attends only to the k keys of its window with the largest scores.

Scores s = scale q k^T as in full attention, in float32 at least; t_i the k-th largest score of query i. Key j is attended where
s_ij >= t_i, and the softmax is over those: keys that tie with the k-th are all kept, so that neither a device nor a pack decides
between them. In a window of at most k tokens it is full attention, and runs as that. Letters of shapes: as in `varlen`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.attention import varlen
from operators.attention.varlen import Projected, Windows

_SCORES = 2**26
_SCORES_ON_CPU = 2**18
"""Scores at once: what fills an accelerator without filling its memory, and what stays in the cache of a CPU's core."""


def attend(qkv: Projected, windows: Windows, scale: float, k: int) -> Tensor:
    """[T, N, D] as defined above, of k > 0. Memory is bounded whatever the windows' lengths."""
    if k >= windows.max_length:
        return varlen.attend(qkv, windows, scale)
    attended = qkv[0].new_empty(qkv[0].shape)
    scores = _SCORES_ON_CPU if attended.device.type == "cpu" else _SCORES
    for run in windows.runs:
        queries = max(1, scores // (attended.shape[1] * run.length))
        at_once = max(1, queries // run.length)
        for start in range(run.tokens.start, run.tokens.stop, at_once * run.length):
            tokens = slice(start, min(start + at_once * run.length, run.tokens.stop))
            q, key, v = (torch.unflatten(x[tokens], 0, (-1, run.length)).transpose(1, 2) for x in qkv)
            blocks = [_attend_block((part, key, v), scale, k) for part in torch.split(q, queries, dim=-2)]
            attended[tokens] = torch.cat(blocks, dim=-2).transpose(1, 2).flatten(0, 1)
    return attended


def _attend_block(qkv: Projected, scale: float, k: int) -> Tensor:
    """Queries [B, N, m, D] over keys and values [B, N, n, D]."""
    q, key, v = qkv
    if k >= key.shape[-2]:
        return F.scaled_dot_product_attention(q, key, v, scale=scale)
    # In half precision scores would be so coarse that many tie.
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(precise) * scale @ key.to(precise).transpose(-1, -2)
    least = (_kth_by_partition if scores.device.type == "cpu" else _kth_by_topk)(scores, k)
    kept = scores.masked_fill_(scores < least, -torch.inf).softmax(-1)
    return kept.to(v.dtype) @ v


def _kth_by_topk(scores: Tensor, k: int) -> Tensor:
    """The k-th largest number of each row, [..., 1]."""
    return scores.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def _kth_by_partition(scores: Tensor, k: int) -> Tensor:
    """The same on a CPU: numpy partitions with its vector instructions, on one thread twice as fast as torch.topk."""
    first = scores.shape[-1] - k
    return torch.from_numpy(np.partition(scores.numpy(), first, axis=-1)[..., first : first + 1])
