"""Disentangled attention equals its formula, pair of tokens by pair of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from operators.attention import disentangled
from operators.attention.disentangled import Positions, attend
from operators.attention.varlen import Projected, Windows
from operators.packing import Pack

CPU = torch.device("cpu")
HEADS, SIZE, SPAN = 2, 8, 5
LENGTHS = [40, 40, 40, 9, 9, 6, 2, 2, 1]
SCALE = 0.3


def windows(lengths: list[int], device: torch.device = CPU) -> Windows:
    """Those of a pack of these lengths."""
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    return Windows.of(Pack(input_ids=np.zeros(ends[-1], np.int32), cu_seqlens=ends, segments=np.arange(len(lengths))), device)


def projected(lengths: list[int]) -> Projected:
    """Queries, keys and values that make attention far from uniform."""
    q, k, v = torch.randn(3, sum(lengths), HEADS, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 2 * q, 2 * k, v


def positions(terms: str) -> Positions:
    """Random embeddings by slot for these terms."""
    keys, queries = torch.randn(2, HEADS, 2 * SPAN, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Positions(keys if "c2p" in terms else None, queries if "p2c" in terms else None)


def slot(distance: int) -> int:
    """Many far distances share one."""
    return min(max(distance + SPAN, 0), 2 * SPAN - 1)


def slots(length: int) -> Tensor:
    """int64 [2 * length - 1]"""
    return torch.tensor([slot(d) for d in range(1 - length, length)])


def reference(qkv: Projected, lengths: list[int], by_slot: Positions, sign: int = 1) -> Tensor:
    """By the formula; with `sign` -1, p2c looks the other way, as it should not."""
    attended = torch.empty_like(qkv[0])
    start = 0
    for n in lengths:
        q, k, v = (x[start : start + n].transpose(0, 1) for x in qkv)
        scores = SCALE * q @ k.transpose(1, 2)
        for i in range(n):
            for j in range(n):
                if by_slot.keys is not None:
                    scores[:, i, j] += (q[:, i] * by_slot.keys[:, slot(i - j)]).sum(-1)
                if by_slot.queries is not None:
                    scores[:, i, j] += (k[:, j] * by_slot.queries[:, slot(sign * (i - j))]).sum(-1)
        attended[start : start + n] = (scores.softmax(-1) @ v).transpose(0, 1)
        start += n
    return attended


@pytest.mark.parametrize("terms", ["c2p p2c", "c2p", "p2c", ""])
def test_like_the_formula(terms: str) -> None:
    qkv, by_slot = projected(LENGTHS), positions(terms)
    attended = attend(qkv, windows(LENGTHS), by_slot.by_distance(slots(max(LENGTHS))), SCALE)
    torch.testing.assert_close(attended, reference(qkv, LENGTHS, by_slot), rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 3))
def test_any_lengths_and_tables_longer_than_needed(lengths: list[int], more: int) -> None:
    qkv, by_slot = projected(lengths), positions("c2p p2c")
    attended = attend(qkv, windows(lengths), by_slot.by_distance(slots(max(lengths) + more)), SCALE)
    torch.testing.assert_close(attended, reference(qkv, lengths, by_slot), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scores", [1, HEADS * 40 * 80, 2 * HEADS * 40 * 80])
def test_the_bound_of_memory_changes_nothing(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, table = projected(LENGTHS), positions("c2p p2c").by_distance(slots(40))
    whole = attend(qkv, windows(LENGTHS), table, SCALE)
    monkeypatch.setattr(disentangled, "_SCORES_ON_CPU", scores)
    torch.testing.assert_close(attend(qkv, windows(LENGTHS), table, SCALE), whole, rtol=0, atol=1e-12)


def test_a_key_that_looks_the_other_way_shows() -> None:
    qkv, by_slot = projected(LENGTHS), positions("c2p p2c")
    wrong = reference(qkv, LENGTHS, by_slot, sign=-1)
    assert (wrong - reference(qkv, LENGTHS, by_slot)).abs().max() > 0.1


def test_a_table_off_by_one_distance_shows() -> None:
    qkv, by_slot = projected(LENGTHS), positions("c2p p2c")
    wrong = attend(qkv, windows(LENGTHS), by_slot.by_distance(slots(40).roll(1)), SCALE)
    assert (wrong - reference(qkv, LENGTHS, by_slot)).abs().max() > 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("terms", ["c2p p2c", "c2p", "p2c", ""])
def test_on_cuda(dtype: torch.dtype, terms: str) -> None:
    lengths = [300, 130, 130, *LENGTHS]
    q, k, v, e = torch.randn(4, sum(lengths), HEADS, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    table = 0.1 * e[: 2 * max(lengths)].transpose(0, 1)  # one more distance than the windows have
    table = torch.cat([table, table[:, :1]], dim=1)
    chosen = Positions(table if "c2p" in terms else None, table if "p2c" in terms else None)
    exact = attend(
        (q.double(), k.double(), v.double()),
        windows(lengths),
        Positions(*(None if x is None else x.double() for x in (chosen.keys, chosen.queries))),
        SCALE / 8,
    )
    there = windows(lengths, torch.device("cuda"))
    moved = Positions(*(None if x is None else x.cuda() for x in (chosen.keys, chosen.queries)))
    attended = attend((q.cuda(), k.cuda(), v.cuda()), there, moved, SCALE / 8).cpu().double()
    torch.testing.assert_close(attended, exact, rtol=0, atol=1e-4 if dtype is torch.float32 else 0.03)
