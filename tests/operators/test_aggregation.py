"""Aggregation equals a plain loop over documents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import aggregation
from operators.segmentation import Windowing, segment


def _loop(vectors: npt.NDArray[np.float32], weights: npt.NDArray[np.int64], kind: str) -> npt.NDArray[np.float64]:
    if kind == "mean":
        return np.average(vectors, axis=0, weights=np.maximum(weights, 1))
    return np.asarray(vectors.max(axis=0) if kind == "max" else vectors[0], np.float64)


@pytest.mark.parametrize(
    ("kind", "function"), [("mean", aggregation.mean), ("max", aggregation.maximum), ("first", aggregation.first)]
)
@given(lengths=st.lists(st.integers(0, 80), max_size=12), policy=st.sampled_from(["window", "error"]), seed=st.integers(0, 9))
def test_like_a_loop(kind: str, function: aggregation.Aggregate, lengths: list[int], policy: str, seed: int) -> None:
    segments = segment(np.array(lengths, np.int64), Windowing(10, 3, policy))  # type: ignore[arg-type]
    vectors = np.random.default_rng(seed).normal(size=(len(segments.document), 4)).astype(np.float32)
    result = function(vectors, segments)
    assert result.shape == (len(lengths), 4)
    assert result.dtype == np.float32
    for document in range(len(lengths)):
        mine = segments.document == document
        if mine.any():
            np.testing.assert_allclose(result[document], _loop(vectors[mine], segments.owned[mine], kind), rtol=1e-6, atol=1e-7)
        else:
            assert np.isnan(result[document]).all()


def test_a_single_segment_is_kept_to_the_bit() -> None:
    segments = segment(np.array([0, 7, 25]), Windowing(10, 3))
    vectors = np.random.default_rng(0).normal(size=(len(segments.document), 8)).astype(np.float32)
    assert (aggregation.mean(vectors, segments)[:2] == vectors[:2]).all()


@pytest.mark.parametrize("function", [aggregation.mean, aggregation.maximum])
def test_nan_stays_within_its_document(function: Callable[..., npt.NDArray[np.float32]]) -> None:
    segments = segment(np.array([25, 25, 25]), Windowing(10, 3))
    vectors = np.ones((len(segments.document), 2), np.float32)
    vectors[segments.first[1] + 1] = np.nan
    assert np.isnan(function(vectors, segments)).all(axis=1).tolist() == [False, True, False]


def test_many_segments_lose_no_precision() -> None:
    segments = segment(np.array([5_000_000]), Windowing(254, 63))
    vectors = np.full((len(segments.document), 1), 0.1, np.float32)
    np.testing.assert_allclose(aggregation.mean(vectors, segments), vectors[:1], rtol=1e-7)


@given(lengths=st.lists(st.integers(0, 80), max_size=12), policy=st.sampled_from(["window", "error"]), seed=st.integers(0, 9))
def test_noisy_or_like_a_loop(lengths: list[int], policy: str, seed: int) -> None:
    segments = segment(np.array(lengths, np.int64), Windowing(10, 3, policy))  # type: ignore[arg-type]
    probabilities = np.random.default_rng(seed).uniform(size=(len(segments.document), 4)).astype(np.float32)
    result = aggregation.noisy_or(probabilities, segments)
    assert result.shape == (len(lengths), 4)
    assert result.dtype == np.float32
    for document in range(len(lengths)):
        mine = probabilities[segments.document == document].astype(np.float64)
        if len(mine):
            np.testing.assert_allclose(result[document], 1 - np.prod(1 - mine, axis=0), rtol=1e-6)
        else:
            assert np.isnan(result[document]).all()


def test_noisy_or_keeps_a_single_segment_and_certainty_to_the_bit_and_loses_no_small_chances() -> None:
    segments = segment(np.array([5, 25, 25]), Windowing(10, 3))
    probabilities = np.array([1e-20, 1, 0.5, 0, 0, 1e-12, 0, 0, 0], np.float32)[:, None]
    assert segments.n_segments.tolist() == [1, 4, 4]
    found = aggregation.noisy_or(probabilities, segments)[:, 0].tolist()
    assert found == [probabilities[0, 0], 1, pytest.approx(1e-12, abs=1e-15)]
