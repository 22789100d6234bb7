"""What a column of results looks like, as counts that add up over pieces: labels, scores, entropies, norms, lengths.

The Arrow type of a column decides what is counted. Bins are fixed, so that counts of different nights can be added and
compared. Of all strings only fields named `label` and `labels` are read: names that the model or the config gives, never
text of a document.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Numbers = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_LABELS = 64
"""Names counted each on its own; a column with more is counted in so many buckets."""

DIRECTIONS = 4
"""Fixed random directions that vectors are laid along."""

_SCORE_BINS = 20
_ENTROPY_BINS = 20
_NORM_BINS = 8
"""For each doubling."""
_PLACES = 4
"""Bins of a direction for each standard deviation that vectors without any direction of their own would have."""


def profile(column: Any) -> dict[str, float]:
    """`measure:bin` -> count, and `sum:NAME` -> sum, of one column (Array or ChunkedArray)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    found: dict[str, float] = {}
    if pa.types.is_struct(column.type) and column.type.get_field_index("answer") >= 0:
        null = pc.is_null(pc.struct_field(column, "answer"))
    else:
        null = pc.is_null(column)
    nulls = pc.sum(null).as_py() or 0
    found |= {"null:yes": nulls, "null:no": len(column) - nulls}
    values = column.drop_null()
    if pa.types.is_fixed_size_list(values.type):
        found |= _vectors(values)
    elif pa.types.is_list(values.type) and pa.types.is_struct(values.type.value_type):
        found |= _items(values)
    elif pa.types.is_struct(values.type):
        found |= _struct(values)
    elif pa.types.is_floating(values.type):
        found |= _scores(_numbers(values))
    return {name: value for name, value in found.items() if value}


def lengths(measure: str, counts: Any) -> dict[str, float]:
    """A histogram of whole numbers: bin 0 is zero, bin b is [2^(b-1), 2^b)."""
    numbers = _numbers(counts)
    return histogram(measure, np.frexp(numbers)[1])


def histogram(measure: str, bins: npt.NDArray[Any]) -> dict[str, float]:
    """`measure:bin` -> how often the bin occurs."""
    values, counts = np.unique(bins.astype(np.int64), return_counts=True)
    return {f"{measure}:{value}": float(count) for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def fold(counts: Mapping[str, float], *, always: bool = False) -> dict[str, float]:
    """Counts by label, in buckets where there are more than MOST_LABELS names or some are in buckets already."""
    if not always and len(counts) <= MOST_LABELS and not any(is_bucket(name) for name in counts):
        return dict(counts)
    buckets: dict[str, float] = {}
    for name, count in counts.items():
        key = name if is_bucket(name) else f"#{zlib.crc32(name.encode()) % MOST_LABELS:02d}"
        buckets[key] = buckets.get(key, 0) + count
    return buckets


def score_bins(scores: Numbers) -> Ints:
    """0..19: equal parts of [0, 1]; 20 + e: above, by the power of two e (0..9) below the score; -1 - e: below 0, likewise
    from 1/16 on."""
    inside = np.minimum(np.floor(scores * _SCORE_BINS), _SCORE_BINS - 1)
    power = np.frexp(np.abs(scores))[1] - 1
    above = _SCORE_BINS + power.clip(0, 9)
    below = -1 - (power + 4).clip(0, 13)
    bins: Ints = np.where(scores > 1, above, np.where(scores < 0, below, inside)).astype(np.int64)
    return bins


def is_bucket(name: str) -> bool:
    """Whether `fold` made the name."""
    return len(name) == 3 and name[0] == "#" and name[1:].isdigit()


def _struct(values: pa.StructArray) -> dict[str, float]:
    """Labels with scores, a choice, an answer, or a sparse vector."""
    names = _names(values)
    if "indices" in names:
        items = pc.struct_field(values, "values")
        squares = np.bincount(_parents(items), _numbers(pc.list_flatten(items)) ** 2, len(values))
        return {**lengths("count", pc.list_value_length(items)), **_norms(np.sqrt(squares))}
    found: dict[str, float] = {}
    if "labels" in names:
        several = pc.struct_field(values, "labels")
        found |= _labels("label", pc.list_flatten(several), _parents(several))
        found |= lengths("count", pc.list_value_length(several))
        found |= _scores(_highest(pc.struct_field(values, "scores")))
    for name in {"label", "choice"} & names:
        found |= _labels("label", pc.struct_field(values, name).cast(pa.string()), np.arange(len(values)))
    if "score" in names:
        found |= _scores(_numbers(pc.struct_field(values, "score")))
    if "scores" in names:
        found |= _entropies(pc.struct_field(values, "scores"), several="labels" in names)
    return found


def _items(values: pa.ListArray) -> dict[str, float]:
    """Any number of entities, windows, answers, masks or vectors for each document."""
    items, parents = pc.list_flatten(values), _parents(values)
    names = _names(items)
    found = lengths("count", pc.list_value_length(values))
    if "label" in names:
        labels = pc.struct_field(items, "label")
        found |= {**_labels("label", labels, parents), **_labels("items", labels, np.arange(len(labels)))}
    if "labels" in names:
        several = pc.struct_field(items, "labels")
        found |= _labels("label", pc.list_flatten(several), parents[_parents(several)])
    if "score" in names:
        found |= _scores(_numbers(pc.struct_field(items, "score")))
    elif "scores" in names:
        found |= _scores(_highest(pc.struct_field(items, "scores")))
    if "vector" in names:
        found |= _vectors(pc.struct_field(items, "vector").drop_null())
    return found


def _labels(measure: str, labels: pa.StringArray, parents: Ints) -> dict[str, float]:
    """How many of the parents have each label."""
    encoded = labels.dictionary_encode()
    known = encoded.dictionary.to_pylist()
    valid = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    pairs = np.unique(parents[valid] * max(1, len(known)) + encoded.indices.drop_null().to_numpy().astype(np.int64))
    counts = np.bincount(pairs % max(1, len(known)), minlength=len(known))
    folded = fold(dict(zip(known, counts.tolist(), strict=True)))
    return {f"{measure}:{name}": float(count) for name, count in folded.items()}


def _scores(scores: Numbers) -> dict[str, float]:
    scores = scores[np.isfinite(scores)]
    sums = {"sum:score": float(scores.sum()), "sum:score2": float((scores**2).sum())}
    return {**histogram("score", score_bins(scores)), **sums}


def _entropies(lists: pa.ListArray, *, several: bool) -> dict[str, float]:
    """From 0 (certain) to 1: of the scores as one distribution, or, where there may be several labels, the mean of each one's."""
    sizes = _numbers(pc.list_value_length(lists)).astype(np.int64)
    shares = _numbers(pc.list_flatten(lists)).clip(1e-12, 1)
    bits = -shares * np.log2(shares)
    if several:
        bits -= (1 - shares) * np.log2((1 - shares).clip(1e-12))
    total = np.bincount(_parents(lists), bits, len(lists))
    wide = sizes >= (1 if several else 2)
    entropy = (total[wide] / (sizes[wide] if several else np.log2(sizes[wide]))).clip(0, 1)
    bins = np.minimum(np.floor(entropy * _ENTROPY_BINS), _ENTROPY_BINS - 1)
    return {**histogram("entropy", bins), "sum:entropy": float(entropy.sum())}


def _vectors(values: pa.FixedSizeListArray) -> dict[str, float]:
    dim = values.type.list_size
    item = values.type.value_field
    scale = float(item.metadata[b"scale"]) if item.metadata and b"scale" in item.metadata else 1.0
    vectors = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, dim) * np.float32(scale)
    norms = np.sqrt((vectors**2).sum(axis=1, dtype=np.float64))
    found = _norms(norms)
    # Without norms, so that the same vectors at another scale differ there and nowhere else.
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (DIRECTIONS, dim))
    for number, direction in enumerate(signs):
        places = (vectors * direction).sum(axis=1, dtype=np.float64) / np.maximum(norms, 1e-12)
        found |= histogram(f"direction{number}", np.floor(places * _PLACES).clip(-8 * _PLACES, 8 * _PLACES))
    return found


def _norms(norms: Numbers) -> dict[str, float]:
    # Rounded, not cut: vectors of length 1 stand in the middle of their bin.
    bins = np.round(np.log2(np.maximum(norms, 2.0**-20)) * _NORM_BINS)
    return {**histogram("norm", bins), "sum:norm": float(norms.sum()), "sum:norm2": float((norms**2).sum())}


def _highest(lists: pa.ListArray) -> Numbers:
    """The highest number of each list that has any."""
    sizes = _numbers(pc.list_value_length(lists)).astype(np.int64)
    flat = _numbers(pc.list_flatten(lists))
    starts = (np.cumsum(sizes) - sizes)[sizes > 0]
    highest: Numbers = np.maximum.reduceat(flat, starts) if len(starts) else flat
    return highest


def _names(values: pa.StructArray) -> set[str]:
    return {values.type.field(i).name for i in range(values.type.num_fields)}


def _parents(lists: pa.ListArray) -> Ints:
    parents: Ints = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    return parents


def _numbers(values: Any) -> Numbers:
    numbers: Numbers = values.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers
