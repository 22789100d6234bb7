"""Windows over documents: pure integer arithmetic on token counts, no text and no model.

Of n body tokens at capacity C and overlap O: n <= C is one window; otherwise k = ceil((n - O) / (C - O)) windows whose
lengths sum to n + (k - 1) * O and differ by at most one, the longer first. Neighbours share exactly O tokens, of which the
first ceil(O / 2) are owned by the earlier window, so that each token has one owner: the window in which it is farther from
an edge. Example: n = 1000, C = 254, O = 64: lengths 252 251 251 251 251, starts 0 188 375 562 749, owned 220 187 187 187 219.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_AUTO_OVERLAP = 64


@dataclass(frozen=True)
class Windowing:
    """How documents are cut. `capacity` and `overlap` count body tokens; ValueError where they do not fit together.

    A cap of m segments reads the first m windows full of text, m * (capacity - overlap) + overlap tokens; `truncate` is a cap
    of one. `error` leaves documents of more than one window without segments. `strided` are the windows of transformers'
    pipelines: all full but the last, which may be a sliver.
    """

    capacity: int
    overlap: int
    policy: Literal["window", "truncate", "error"] = "window"
    max_segments: int | None = None
    style: Literal["balanced", "strided"] = "balanced"

    def __post_init__(self) -> None:
        resolve_overlap(self.overlap, self.capacity)
        if self.max_segments is not None and self.max_segments < 1:
            raise ValueError(f"max_segments is {self.max_segments}; it must be at least 1")


@dataclass(frozen=True)
class Segments:
    """The windows of D documents, S in all, ordered by document and start. Positions count body tokens of the document."""

    document: Ints
    """int64 [S]: index of the document."""
    start: Ints
    """int64 [S]"""
    length: Ints
    """int64 [S]"""
    owned: Ints
    """int64 [S]: tokens that this window owns; they sum to the tokens of the document that are read."""
    n_segments: Ints
    """int64 [D]"""
    truncated: Flags
    """bool [D]: text was left out by `truncate` or `max_segments`."""
    too_long: Flags
    """bool [D]: policy `error` refuses the document, or its companion leaves no room for it; it has no segments."""

    @property
    def first_owned(self) -> Ints:
        """int64 [S]: where the tokens that this window owns start; windows own their documents' tokens in order, without gaps."""
        before = np.cumsum(self.owned) - self.owned
        return before - before[self.first[self.document]]

    @property
    def first(self) -> Ints:
        """int64 [D]: index of each document's first segment (of the next document's where it has none)."""
        return np.cumsum(self.n_segments) - self.n_segments


def resolve_overlap(overlap: int | Literal["auto"], capacity: int) -> int:
    """`overlap` in body tokens, `auto` being min(64, capacity // 4). ValueError where it is no overlap for `capacity`."""
    if capacity < 1:
        raise ValueError(f"a window must hold at least 1 body token, not {capacity}")
    if overlap == "auto":
        return min(_AUTO_OVERLAP, capacity // 4)
    if not 0 <= overlap <= capacity // 2:
        raise ValueError(f"overlap {overlap} does not fit windows of {capacity} body tokens; choose 0 to {capacity // 2}")
    return overlap


def segment(lengths: Ints, windowing: Windowing, taken: Ints | None = None) -> Segments:
    """Cut documents of `lengths` body tokens (int64 [D]) into windows. A document of no tokens has one segment of length 0.

    `taken` (int64 [D]): tokens of each document's windows that something else takes, such as a question; what is left is the
    capacity, and the overlap is at most half of it."""
    read = lengths.astype(np.int64)
    room = np.full(len(read), windowing.capacity) - (0 if taken is None else taken)
    capacity = np.maximum(room, 1)
    overlap = np.minimum(windowing.overlap, capacity // 2)
    cap = 1 if windowing.policy == "truncate" else windowing.max_segments
    truncated = np.zeros(len(read), bool)
    too_long = ((read > capacity) & (windowing.policy == "error")) | (room < 1)
    if cap is not None:
        most = cap * (capacity - overlap) + overlap
        truncated = (read > most) & ~too_long
        read = np.minimum(read, most)
    count = np.where(read <= capacity, 1, -((overlap - read) // (capacity - overlap)))
    count[too_long] = 0

    document = np.repeat(np.arange(len(read), dtype=np.int64), count)
    n, c, o, k = read[document], capacity[document], overlap[document], count[document]
    i = np.arange(len(document), dtype=np.int64) - (np.cumsum(count) - count)[document]
    if windowing.style == "strided":
        start = i * (c - o)
        length = np.minimum(c, n - start)
    else:
        base, longer = np.divmod(n + (k - 1) * o, k)
        length = base + (i < longer)
        start = i * (base - o) + np.minimum(i, longer)
    earlier = (o + 1) // 2
    owned = length - np.where(i > 0, earlier, 0) - np.where(i < k - 1, o - earlier, 0)
    return Segments(document, start, length, owned, count, truncated, too_long)
