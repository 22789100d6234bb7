"""Attention within windows equals softmax over a mask of blocks, whatever the lengths and however far a token sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from operators.attention import varlen
from operators.attention.varlen import Projected, Windows, attend
from operators.packing import Pack

CPU = torch.device("cpu")
LENGTHS = [300, 300, 129, 17, 17, 17, 2, 1, 1]
REACHES = [None, 0, 1, 8, 127, 128, 129, 298, 299, 300]


def pack(lengths: list[int]) -> Pack:
    """A pack of windows of these lengths."""
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    return Pack(input_ids=np.zeros(ends[-1], np.int32), cu_seqlens=ends, segments=np.arange(len(lengths)))


def projected(lengths: list[int], heads: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> Projected:
    """Queries, keys and values that make attention far from uniform."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), heads, size, generator=generator, dtype=torch.float64).to(dtype)
    return 3 * q, k, v


def reference(qkv: Projected, lengths: list[int], scale: float, reach: int | None) -> Tensor:
    """By the definition, over all pairs of tokens of the pack."""
    q, k, v = (x.transpose(0, 1) for x in qkv)
    window = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.arange(len(window))
    seen = window[:, None] == window
    if reach is not None:
        seen &= (position[:, None] - position).abs() <= reach
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_runs_are_the_windows_in_order(lengths: list[int]) -> None:
    windows = Windows.of(pack(lengths), CPU)
    assert [run.length for run in windows.runs for _ in range(run.count)] == [n for n in lengths if n]
    starts = [0, *windows.ends[:-1]]
    found = [run.start + i * run.length for run in windows.runs for i in range(run.count)]
    assert found == [start for start, n in zip(starts, lengths, strict=True) if n]
    assert [i for run in windows.runs for i in range(run.tokens.start, run.tokens.stop)] == list(range(sum(lengths)))
    assert windows.cu_seqlens.tolist() == [0, *windows.ends]
    assert windows.max_length == max(lengths)


def test_equal_neighbours_are_one_run() -> None:
    runs = Windows.of(pack([7, 7, 7, 3, 7]), CPU).runs
    assert [(run.start, run.count, run.length) for run in runs] == [(0, 3, 7), (21, 1, 3), (24, 1, 7)]


@given(st.lists(st.integers(0, 600), min_size=1, max_size=20))
def test_groups_are_the_windows_in_order_and_waste_little(lengths: list[int]) -> None:
    groups = Windows.of(pack(lengths), CPU).groups
    covered = [window for group in groups for window in range(group.first, group.last)]
    assert covered == sorted(set(covered))
    assert {window for window, length in enumerate(lengths) if length} <= set(covered)
    for group in groups:
        found = [length for length in lengths[group.first : group.last] if length]
        assert group.length == max(found)
        assert group.length <= 64 or 2 * min(found) >= group.length


def test_a_sorted_pack_has_few_groups() -> None:
    groups = Windows.of(pack(list(range(512, 0, -1))), CPU).groups
    assert [(group.first, group.last, group.length) for group in groups] == [
        (0, 257, 512),
        (257, 385, 255),
        (385, 449, 127),
        (449, 512, 63),
    ]


@pytest.mark.parametrize("reach", REACHES)
def test_like_the_definition(reach: int | None) -> None:
    qkv = projected(LENGTHS)
    attended = attend(qkv, Windows.of(pack(LENGTHS), CPU), 0.4, reach)
    torch.testing.assert_close(attended, reference(qkv, LENGTHS, 0.4, reach), rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.none() | st.integers(0, 9))
def test_any_lengths(lengths: list[int], reach: int | None) -> None:
    qkv = projected(lengths)
    attended = attend(qkv, Windows.of(pack(lengths), CPU), 0.4, reach)
    torch.testing.assert_close(attended, reference(qkv, lengths, 0.4, reach), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reach", [1, 8, 127, 298])
def test_one_token_more_or_less_shows(reach: int) -> None:
    qkv = projected(LENGTHS)
    right = reference(qkv, LENGTHS, 0.4, reach)
    for wrong in (reach - 1, reach + 1):
        assert (attend(qkv, Windows.of(pack(LENGTHS), CPU), 0.4, wrong) - right).abs().max() > 1e-4  # 1e-12 is asked for above


def test_a_neighbour_that_is_seen_shows() -> None:
    qkv = projected(LENGTHS)
    leaking = attend(qkv, Windows.of(pack([sum(LENGTHS)]), CPU), 0.4)
    assert (leaking - reference(qkv, LENGTHS, 0.4, None)).abs().max() > 0.1


def test_views_of_one_projection_are_taken() -> None:
    fused = torch.randn(20, 2, 3 * 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = fused.chunk(3, dim=-1)
    attended = attend((q, k, v), Windows.of(pack([12, 8]), CPU), 0.4)
    torch.testing.assert_close(attended, reference((q, k, v), [12, 8], 0.4, None), rtol=0, atol=1e-12)
    assert attended.is_contiguous()


@pytest.mark.parametrize("reach", [None, 8])
def test_the_cuda_kernel_is_called_as_torch_declares_it(reach: int | None) -> None:
    q, k, v = (x.to("meta") for x in projected(LENGTHS, dtype=torch.bfloat16))
    attended = varlen._attend_cuda((q, k, v), Windows.of(pack(LENGTHS), torch.device("meta")), 0.4, reach)
    assert attended.shape == q.shape
    assert attended.dtype == q.dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("reach", [None, 8, 128])
def test_on_cuda(dtype: torch.dtype, reach: int | None) -> None:
    qkv = projected(LENGTHS, size=16, dtype=dtype)
    q, k, v = (x.cuda() for x in qkv)
    attended = attend((q, k, v), Windows.of(pack(LENGTHS), q.device), 0.25, reach).cpu().double()
    exact = reference((qkv[0].double(), qkv[1].double(), qkv[2].double()), LENGTHS, 0.25, reach)
    torch.testing.assert_close(attended, exact, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.03)
