"""Pooling of windows keeps float32; spans get exactly their tokens, each as its owner window sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from operators.inputs import Inputs, Tokens, make_inputs
from operators.packing import Frame, Pack, build_pack
from operators.pooling import find_spans, join_spans, pool, pool_spans
from operators.schema import TEXT
from operators.segmentation import Windowing

SPANS = pa.list_(pa.list_(pa.int64()))
FRAME = Frame(np.array([7, 8], np.int32), np.array([9], np.int32))


def test_sums_are_kept_in_float32() -> None:
    hidden = torch.full((4096, 4), 1.0, dtype=torch.bfloat16)
    pack = Pack(np.zeros(4096, np.int32), np.array([0, 4096], np.int32), np.array([0]), 0)
    modes = ("mean", "mean_sqrt_len_tokens", "weightedmean")
    pooled = pool(hidden, pack, modes, 0)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[0], torch.tensor([1.0] * 4 + [64.0] * 4 + [1.0] * 4))


def test_a_window_of_the_prompt_alone_stays_its_own() -> None:
    hidden = torch.arange(4.0)[:, None]
    pack = Pack(np.zeros(4, np.int32), np.array([0, 2, 4], np.int32), np.array([0, 1]), 2)
    assert pool(hidden, pack, ("cls",), 2).tolist() == [[0.0], [2.0]]


@st.composite
def _corpora(draw: st.DrawFn) -> tuple[Inputs, list[list[tuple[int, int]]]]:
    """Documents whose tokens are of one to three characters, some of which reach back over the one before; and spans of them."""
    bounds, token_spans, texts, spans = [0], [], [], []
    for _ in range(draw(st.integers(1, 4))):
        stop = 0
        for size, back in draw(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20)):
            token_spans.append((max(stop - back, 0), stop + size))
            stop += size
        bounds.append(len(token_spans))
        texts.append("x" * stop)
        place = st.integers(0, stop)
        pairs = draw(st.lists(st.tuples(place, place), max_size=5))
        spans.append([(min(pair), max(pair)) for pair in pairs])
    capacity = draw(st.integers(1, 9))
    most = draw(st.none() | st.integers(1, 3))
    windowing = Windowing(capacity, draw(st.integers(0, capacity // 2)), max_segments=most)
    ids = np.arange(len(token_spans), dtype=np.int32)
    tokens = Tokens(ids, np.array(bounds), np.array(token_spans, np.int32).reshape(-1, 2))
    columns = pa.table({TEXT: pa.array(texts, pa.large_string()), "spans": pa.array(spans, SPANS)})
    return make_inputs(tokens, windowing, columns=columns), spans


def _by_hand(inputs: Inputs, seen: dict[tuple[int, int], Any], document: int, start: int, end: int) -> Any:
    """The mean of a span's tokens, looked up one by one; None where it has none. `seen`: vectors by segment and token."""
    tokens, segments = inputs.tokens, inputs.segments
    assert tokens.spans is not None
    inside = []
    for token in range(int(tokens.bounds[document]), int(tokens.bounds[document + 1])):
        position = token - tokens.bounds[document]
        for s in np.flatnonzero(segments.document == document).tolist():
            owns = segments.first_owned[s] <= position < segments.first_owned[s] + segments.owned[s]
            if owns and start <= tokens.spans[token, 1] - 1 < end:
                inside.append(seen[s, token])
    return np.mean(inside, axis=0) if inside else None


@given(_corpora(), st.randoms(use_true_random=False))
def test_spans_get_the_mean_of_their_tokens_from_owner_windows(
    corpus: tuple[Inputs, list[list[tuple[int, int]]]], random: Any
) -> None:
    inputs, spans = corpus
    found = find_spans(inputs, "spans")
    order = list(range(len(inputs.segments.document)))
    random.shuffle(order)
    packs = [np.array(order[i : i + 3]) for i in range(0, len(order), 3)]
    offsets = np.concatenate([[0], np.cumsum(found.part_counts)])
    sums = np.full((offsets[-1], 3), np.nan, np.float32)
    seen = {}
    for chosen in packs:
        pack = build_pack(inputs, chosen, FRAME)
        hidden = torch.from_numpy(np.random.default_rng(chosen).random((len(pack.input_ids), 2), np.float32))
        for i, s in enumerate(chosen.tolist()):
            body = slice(pack.cu_seqlens[i] + 2, pack.cu_seqlens[i + 1] - 1)
            seen.update({(s, token): vector for token, vector in zip(pack.input_ids[body], hidden[body].numpy(), strict=True)})
        rows = np.concatenate([np.arange(offsets[s], offsets[s + 1]) for s in chosen])
        sums[rows] = pool_spans(hidden, pack, found).numpy()
    means, some = join_spans(sums, found)
    assert found.valid.all()
    expected = [_by_hand(inputs, seen, d, *pair) for d, pairs in enumerate(spans) for pair in pairs]
    assert len(means) == len(expected)
    for mean, is_some, by_hand in zip(means, some, expected, strict=True):
        assert is_some == (by_hand is not None)
        if by_hand is not None:
            np.testing.assert_allclose(mean, by_hand, rtol=1e-5)


def test_documents_with_wrong_spans_are_told_apart() -> None:
    texts = pa.array(["\u6cb3\u6d41\U0001d11e"] * 9, pa.large_string())  # three code points, more bytes
    spans = [[], [[0, 3]], [[3, 3]], [[0, 4]], [[2, 1]], [[-1, 2]], [[0, 1, 2]], [[0, 1], [1, None]], [[0, 1], []]]
    columns = pa.table({TEXT: texts, "spans": pa.array(spans, SPANS)})
    for skipped in (0, 2):  # a slice of a column is read as one of its own
        documents = 9 - skipped
        places = np.tile(np.array([[0, 1], [1, 2], [2, 3]], np.int32), (documents, 1))
        tokens = Tokens(np.zeros(3 * documents, np.int32), 3 * np.arange(documents + 1), places)
        found = find_spans(make_inputs(tokens, Windowing(10, 0), columns=columns.slice(skipped)), "spans")
        assert found.valid.tolist() == [d < 3 for d in range(9)][skipped:]
        assert found.bounds.max() == 3


def test_spans_need_offsets() -> None:
    with pytest.raises(ValueError, match="late pooling needs tokens with spans"):
        find_spans(make_inputs(Tokens(np.zeros(1, np.int32), np.array([0, 1])), Windowing(4, 0)), "spans")
