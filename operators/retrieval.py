"""How well vectors find what is relevant: rows ranked by cosine for each query, block by block, with recall, MRR and nDCG.

A query is itself a row, and all other rows are ranked for it, equal similarities in order of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Relevance = Callable[[Ints], Flags]
"""Rows of queries, int64 [B] -> bool [B, N]: what is relevant for each."""

_BLOCK = 2**24
"""Similarities held at once."""
_GAIN_DEPTH = 10


def same_label(codes: Ints) -> Relevance:
    """Rows with the query's own code are relevant; `codes` is int64 [N]."""
    return lambda queries: codes[queries, None] == codes


def listed(pairs: Ints, n_rows: int) -> Relevance:
    """Pairs of a query's row and a relevant row, int64 [P, 2] in any order; every query in them must be asked for."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]

    def relevant(queries: Ints) -> Flags:
        start, stop = np.searchsorted(pairs[:, 0], queries[0]), np.searchsorted(pairs[:, 0], queries[-1], "right")
        mask = np.zeros((len(queries), n_rows), bool)
        mask[np.searchsorted(queries, pairs[start:stop, 0]), pairs[start:stop, 1]] = True
        return mask

    return relevant


def retrieval(vectors: Vectors, queries: Ints, relevance: Relevance, ks: tuple[int, ...]) -> dict[str, Floats]:
    """Figures of each query (float64 [Q]), for `vectors` [N, D] and the rows of the queries [Q], ascending.

    `relevant`: how many rows are, besides the query's own. `recall@k`: their share among the first k. `mrr`: 1 / rank of the
    first of them. `ndcg@10`: sum of 1 / log2(rank + 1) over those in the first ten, divided by the largest such sum there can
    be. Where nothing is relevant all are 0.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    size = max(1, _BLOCK // len(vectors))
    parts = [_block(vectors, queries[i : i + size], relevance, ks) for i in range(0, len(queries), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _block(vectors: Vectors, queries: Ints, relevance: Relevance, ks: tuple[int, ...]) -> dict[str, Floats]:
    similarity = vectors[queries] @ vectors.T
    relevant = relevance(queries)
    each = np.arange(len(queries))
    similarity[each, queries] = -np.inf
    relevant[each, queries] = False
    counts = relevant.sum(axis=1)
    best = np.take_along_axis(relevant, _top(similarity, min(max(*ks, _GAIN_DEPTH), len(vectors))), axis=1)
    figures = {"relevant": counts.astype(np.float64)}
    for k in ks:
        figures[f"recall@{k}"] = best[:, :k].sum(axis=1) / np.maximum(counts, 1)
    figures["mrr"] = np.where(counts > 0, 1 / _first_rank(similarity, relevant), 0)
    gains = 1 / np.log2(np.arange(_GAIN_DEPTH) + 2)
    ideal = np.append(0, np.cumsum(gains))[np.minimum(counts, _GAIN_DEPTH)]
    gained = best[:, :_GAIN_DEPTH] @ gains[: best.shape[1]]
    figures[f"ndcg@{_GAIN_DEPTH}"] = np.divide(gained, ideal, out=np.zeros(len(queries)), where=ideal > 0)
    return figures


def _top(similarity: Vectors, depth: int) -> Ints:
    """int64 [B, depth]: the first columns by falling similarity. Not argpartition, which cuts ties anywhere."""
    n = similarity.shape[1]
    least = np.partition(similarity, n - depth, axis=1)[:, n - depth]
    row, column = np.nonzero(similarity >= least[:, None])
    order = np.lexsort((column, -similarity[row, column], row))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    top: Ints = column[order][rank < depth].reshape(len(similarity), depth)
    return top


def _first_rank(similarity: Vectors, relevant: Flags) -> Ints:
    """int64 [B]: the rank of the first relevant column, from 1; of no meaning where there is none."""
    column = np.argmax(np.where(relevant, similarity, -np.inf), axis=1)[:, None]
    value = np.take_along_axis(similarity, column, axis=1)
    before = (similarity == value) & (np.arange(similarity.shape[1]) < column)
    rank: Ints = 1 + ((similarity > value) | before).sum(axis=1)
    return rank
