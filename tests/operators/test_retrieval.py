"""Ranking against the plain definition: sort all other rows for each query."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import retrieval as module
from operators.retrieval import listed, retrieval, same_label

KS = (1, 3, 20)


def expected(vectors: np.ndarray, query: int, relevant: set[int]) -> dict[str, float]:
    """The figures of one query by their definitions."""
    norms = [math.hypot(*row) or 1.0 for row in vectors.tolist()]
    cosines = [float(a @ vectors[query]) / (norm * norms[query]) for a, norm in zip(vectors, norms, strict=True)]
    order = sorted((i for i in range(len(vectors)) if i != query), key=lambda i: (-cosines[i], i))
    hits = [rank for rank, row in enumerate(order, 1) if row in relevant - {query}]
    n = len(hits)
    figures = {f"recall@{k}": sum(rank <= k for rank in hits) / max(n, 1) for k in KS}
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(n, 10) + 1))
    gained = sum(1 / math.log2(rank + 1) for rank in hits if rank <= 10)
    return {**figures, "relevant": n, "mrr": 1 / hits[0] if hits else 0, "ndcg@10": gained / ideal if hits else 0}


# Axes and their sums of two: their cosines are equal or far apart, so that ties are ties in float32, too.
VECTORS = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=30)


def by_label(codes: list[int], query: int) -> set[int]:
    return {i for i, code in enumerate(codes) if code == codes[query]}


@given(VECTORS, st.data())
def test_rows_of_the_same_label_are_relevant(rows: list[list[int]], data: st.DataObject) -> None:
    vectors = np.array(rows, np.float32)
    codes = data.draw(st.lists(st.integers(-1, 2), min_size=len(rows), max_size=len(rows)))
    queries = np.flatnonzero(np.array(codes) >= 0)
    if not len(queries):
        return
    figures = retrieval(vectors, queries, same_label(np.array(codes)), KS)
    for i, query in enumerate(queries.tolist()):
        theirs = expected(vectors, query, by_label(codes, query))
        assert {name: each[i] for name, each in figures.items()} == pytest.approx(theirs)


@given(VECTORS, st.data())
def test_listed_rows_are_relevant(rows: list[list[int]], data: st.DataObject) -> None:
    vectors, index = np.array(rows, np.float32), st.integers(0, len(rows) - 1)
    relevant = data.draw(st.dictionaries(index, st.sets(index), min_size=1))
    queries = np.array(sorted(relevant))
    pairs = np.array([(q, r) for q, found in relevant.items() for r in found], np.int64).reshape(-1, 2)
    figures = retrieval(vectors, queries, listed(pairs, len(rows)), KS)
    for i, query in enumerate(queries.tolist()):
        assert {name: each[i] for name, each in figures.items()} == pytest.approx(expected(vectors, query, relevant[query]))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(70, 8)).astype(np.float32)
    queries = np.arange(0, 70, 2)
    pairs = np.stack([rng.choice(queries, 200), rng.integers(0, 70, 200)], axis=1)
    whole = [retrieval(vectors, queries, r, KS) for r in (listed(pairs, 70), same_label(pairs[:70, 1] % 5))]
    monkeypatch.setattr(module, "_BLOCK", 3 * 70)
    parts = [retrieval(vectors, queries, r, KS) for r in (listed(pairs, 70), same_label(pairs[:70, 1] % 5))]
    for one, other in zip(whole, parts, strict=True):
        for name, each in one.items():
            np.testing.assert_allclose(each, other[name], err_msg=name)
    assert 0 < whole[0]["mrr"].mean() < 1


def test_lengths_do_not_count() -> None:
    vectors = np.array([[1, 0], [100, 1], [0, 0.1], [1e-30, 0]], np.float32)
    figures = retrieval(vectors, np.array([0]), listed(np.array([[0, 3]]), 4), (1,))
    assert figures["mrr"][0] == 1
