"""From the vectors of segments to one vector for each document: pure functions on float32 [S, P], giving float32 [D, P].

Segments stand in the order of their documents. A document without segments gets NaN, and so does one with a NaN among them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from operators.segmentation import Segments

Floats = npt.NDArray[np.float32]
Aggregate = Callable[[Floats, Segments], Floats]


def mean(vectors: Floats, segments: Segments) -> Floats:
    """sum(w[i] v[i]) / sum(w[i]), w being the tokens that a segment owns; the vector itself where there is one segment."""
    documents = first(vectors, segments)
    many = segments.n_segments > 1
    # reduceat sums up to the next index: single segments are cut out first, so that only runs of several are left.
    inside = many[segments.document]
    starts = _starts(segments.n_segments[many])
    weights = segments.owned[inside].astype(np.float32)
    # float64 sums: a document may have tens of thousands of segments.
    sums = _reduce(np.add, vectors[inside] * weights[:, None], starts)
    documents[many] = sums / _reduce(np.add, weights[:, None], starts)
    return documents


def maximum(vectors: Floats, segments: Segments) -> Floats:
    """The largest value in each component."""
    documents = np.full((len(segments.n_segments), vectors.shape[1]), np.nan, np.float32)
    some = segments.n_segments > 0
    documents[some] = _reduce(np.maximum, vectors, _starts(segments.n_segments[some]))
    return documents


def noisy_or(probabilities: Floats, segments: Segments) -> Floats:
    """1 - prod(1 - p): that at least one segment is right, if each is on its own; p itself where there is one segment."""
    documents = first(probabilities, segments)
    many = segments.n_segments > 1
    wrong = 1 - probabilities[many[segments.document]].astype(np.float64)
    documents[many] = 1 - _reduce(np.multiply, wrong, _starts(segments.n_segments[many]))
    return documents


def first(vectors: Floats, segments: Segments) -> Floats:
    """The vector of the first segment."""
    documents = np.full((len(segments.n_segments), vectors.shape[1]), np.nan, np.float32)
    some = segments.n_segments > 0
    documents[some] = vectors[segments.first[some]]
    return documents


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.cumsum(counts) - counts


def _reduce(operation: np.ufunc, vectors: npt.NDArray[np.floating], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Reduce runs of rows; each run starts where `starts` says and has a row at least."""
    if not len(starts):
        return np.empty((0, vectors.shape[1]), np.float64)
    reduced: npt.NDArray[np.float64] = operation.reduceat(vectors, starts, axis=0, dtype=np.float64)
    return reduced
