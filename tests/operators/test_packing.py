"""Packs are a partition within the budget, and lay out exactly the windows asked for."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.packing import Frame, build_pack, plan_packs
from operators.segmentation import Windowing, segment


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 200), st.booleans())
def test_packs_are_a_partition_within_the_budget(lengths: list[int], budget: int, padded: bool) -> None:
    sizes = np.array(lengths, np.int64)
    packs = plan_packs(sizes, budget, padded=padded)
    flat = [i for pack in packs for i in pack.tolist()]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    for pack in packs:
        used = int(sizes[pack].max()) * len(pack) if padded else int(sizes[pack].sum())
        assert used <= budget or len(pack) == 1
    for pack, following in pairwise(packs):
        # No pack has room left for the next segment.
        count = len(pack) + 1
        with_next = int(sizes[pack[0]]) * count if padded else int(sizes[pack].sum() + sizes[following[0]])
        assert with_next > budget


@pytest.mark.parametrize("padded", [True, False])
def test_planning_is_deterministic_and_keeps_the_order_of_equals(padded: bool) -> None:
    lengths = np.array([5, 9, 5, 9, 5])
    assert [p.tolist() for p in plan_packs(lengths, 18, padded=padded)] == [[1, 3], [0, 2, 4]]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 3), st.integers(0, 2), st.randoms()
)
def test_a_pack_holds_its_windows_framed(lengths: list[int], capacity: int, before: int, after: int, random: Random) -> None:
    bounds = np.cumsum([0, *lengths]).astype(np.int64)
    ids = np.arange(1000, 1000 + bounds[-1], dtype=np.int32)
    segments = segment(np.array(lengths, np.int64), Windowing(capacity, capacity // 3))
    chosen = np.array(random.sample(range(len(segments.document)), len(segments.document)))
    frame = Frame(np.arange(before, dtype=np.int32), np.arange(900, 900 + after, dtype=np.int32), 1)
    pack = build_pack(ids, bounds, segments, chosen, frame)
    windows = [pack.input_ids[a:b].tolist() for a, b in pairwise(pack.cu_seqlens)]
    for window, number in zip(windows, chosen, strict=True):
        start = bounds[segments.document[number]] + segments.start[number]
        body = ids[start : start + segments.length[number]].tolist()
        assert window == [*frame.prefix.tolist(), *body, *frame.suffix.tolist()]
    assert pack.input_ids.dtype == pack.cu_seqlens.dtype == np.int32
    assert pack.lengths.tolist() == [len(w) for w in windows]
    assert pack.max_length == max(len(w) for w in windows)
    assert pack.segments.tolist() == chosen.tolist()
    assert frame.size == before + after
    assert pack.prompt_length == 1
