"""Pairs of tokens are counted as masks would count them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from operators.attention.activation import activation_ratio, count_pairs


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 15))
def test_like_masks(lengths: list[int], k: int) -> None:
    counted = count_pairs(np.array(lengths, np.int64), k)
    kept = sum(int((np.argsort(np.argsort(np.random.default_rng(0).random((n, n)))) < k).sum()) for n in lengths)
    assert counted == {"attention_pairs": sum(n * n for n in lengths), "attention_pairs_kept": kept}


def test_long_windows_do_not_overflow() -> None:
    assert count_pairs(np.array([3_000_000_000], np.int64), 1)["attention_pairs"] == 9 * 10**18


def test_the_ratio() -> None:
    assert activation_ratio({}) is None
    assert activation_ratio({"tokens": 5}) is None
    assert activation_ratio({"attention_pairs": 0, "attention_pairs_kept": 0}) is None
    assert activation_ratio({"attention_pairs": 10 * 10 + 4 * 4, "attention_pairs_kept": 10 * 5 + 4 * 4}) == 66 / 116
