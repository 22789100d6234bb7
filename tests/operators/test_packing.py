"""Packs are a partition within the budget, and lay out exactly the windows asked for."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.inputs import Companions, Tokens, make_inputs
from operators.packing import Frame, Pack, build_pack, pad_tail, plan_packs
from operators.segmentation import Windowing


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
    inputs = make_inputs(Tokens(ids, bounds), Windowing(capacity, capacity // 3))
    segments = inputs.segments
    chosen = np.array(random.sample(range(len(segments.document)), len(segments.document)))
    frame = Frame(np.arange(before, dtype=np.int32), np.arange(900, 900 + after, dtype=np.int32), 1)
    pack = build_pack(inputs, chosen, frame)
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
    assert pack.token_types is None
    assert pack.body is not None
    assert (pack.body - pack.cu_seqlens[:-1] == before).all()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(0, 7), min_size=1, max_size=3)), min_size=1, max_size=6),
    st.booleans(),
    st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
def test_a_window_of_two_texts_holds_the_companion_whole(
    documents: list[tuple[int, list[int]]], first: bool, specials: list[int]
) -> None:
    lengths = [n for n, _ in documents]
    sizes = [m for _, companions in documents for m in companions]
    bounds, companion_bounds = (np.cumsum([0, *counts]).astype(np.int64) for counts in (lengths, sizes))
    document = np.repeat(np.arange(len(documents)), [len(c) for _, c in documents])
    ids, others = np.arange(1000, 1000 + bounds[-1], dtype=np.int32), np.arange(5000, 5000 + companion_bounds[-1], dtype=np.int32)
    inputs = make_inputs(Tokens(ids, bounds), Windowing(12, 3), Companions(document, others, companion_bounds, first))
    prefix, middle, suffix = (np.arange(at, at + n, dtype=np.int32) for at, n in zip((0, 10, 20), specials, strict=True))
    frame = Frame(prefix, suffix, 0, middle, (0, 1, 2, 3, 4))
    segments = inputs.segments
    pack = build_pack(inputs, np.arange(len(segments.document)), frame)
    assert pack.token_types is not None
    assert pack.body is not None
    for number, (a, b) in enumerate(pairwise(pack.cu_seqlens)):
        entry = segments.document[number]
        start = bounds[document[entry]] + segments.start[number]
        body = ids[start : start + segments.length[number]].tolist()
        companion = others[companion_bounds[entry] : companion_bounds[entry + 1]].tolist()
        one, two = (companion, body) if first else (body, companion)
        runs = [prefix.tolist(), one, middle.tolist(), two, suffix.tolist()]
        assert pack.input_ids[a:b].tolist() == [token for run in runs for token in run]
        assert pack.token_types[a:b].tolist() == [kind for kind, run in enumerate(runs) for _ in run]
        assert pack.input_ids[pack.body[number] : pack.body[number] + segments.length[number]].tolist() == body
        assert len(body) + max(documents[document[entry]][1]) <= 12
    assert not segments.too_long.any()
    entries = np.searchsorted(document, document)
    assert (segments.n_segments == segments.n_segments[entries]).all()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 50), st.booleans())
def test_a_padded_tail_adds_windows_behind(lengths: list[int], more: int, typed: bool) -> None:
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    ids = np.arange(100, 100 + bounds[-1], dtype=np.int32)
    pack = Pack(ids, bounds, np.arange(len(lengths)), 2, np.ones_like(ids) if typed else None, bounds[:-1] + np.int64(1))
    padded = pad_tail(pack, len(ids) + more)
    assert len(padded.input_ids) == padded.cu_seqlens[-1] == len(ids) + more
    assert padded.input_ids.dtype == padded.cu_seqlens.dtype == np.int32
    assert padded.cu_seqlens[: len(bounds)].tolist() == bounds.tolist()
    assert padded.input_ids[: len(ids)].tolist() == ids.tolist()
    assert padded.max_length == pack.max_length
    assert (padded.lengths > 0).all()
    assert (padded.segments, padded.body, padded.prompt_length) == (pack.segments, pack.body, 2)
    assert (padded.token_types is not None) == typed
    if padded.token_types is not None:
        assert padded.token_types.tolist() == [1] * len(ids) + [0] * more
        assert padded.token_types.dtype == np.int32
