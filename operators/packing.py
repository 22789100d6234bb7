"""Packs: segments of many documents laid end to end for one pass of an encoder.

Segments are sorted by length, across documents, so that an encoder that pads wastes little, and cut where a token budget is
full. What a document gets does not depend on the pack that its segments met in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators.segmentation import Ints, Segments

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Frame:
    """What stands around the body tokens in every window: special tokens, and the prompt before the body."""

    prefix: Ids
    """int32: special tokens and prompt before the body."""
    suffix: Ids
    """int32: special tokens after it."""
    prompt_length: int = 0
    """Leading tokens of a window that pooling leaves out where the model excludes its prompt; 0 without a prompt."""

    @property
    def size(self) -> int:
        """Tokens of a window that are not body."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True)
class Pack:
    """S windows, T tokens, without padding: window i is `input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    input_ids: Ids
    """int32 [T]"""
    cu_seqlens: Ids
    """int32 [S + 1]"""
    segments: Ints
    """int64 [S]: which of the piece's segments these are."""
    prompt_length: int
    """As `Frame.prompt_length`."""

    @property
    def lengths(self) -> Ids:
        """int32 [S]: tokens of each window."""
        return np.diff(self.cu_seqlens)

    @property
    def max_length(self) -> int:
        """Tokens of the longest window."""
        return int(self.lengths.max())


def plan_packs(lengths: Ints, budget: int, *, padded: bool) -> list[Ints]:
    """Partition segments of `lengths` tokens (int64 [S], specials included) into packs of at most `budget` tokens.

    Where the encoder pads, a pack counts as its longest segment times its size. A segment longer than the budget stands
    alone. Longest first, so that too large a budget shows at once."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    packs = []
    first, used = 0, 0
    while first < len(order):
        size = budget // int(lengths[order[first]]) if padded else int(np.searchsorted(ends, used + budget, side="right")) - first
        last = min(first + max(1, size), len(order))
        packs.append(order[first:last])
        first, used = last, int(ends[last - 1])
    return packs


def build_pack(ids: Ids, bounds: Ints, segments: Segments, chosen: Ints, frame: Frame) -> Pack:
    """Lay the segments numbered in `chosen` end to end, framed. `ids` and `bounds` are those of `tokenization.Tokens`."""
    body = segments.length[chosen]
    ends = np.cumsum(body + frame.size)
    starts = ends - (body + frame.size)
    packed = np.empty(ends[-1], np.int32)
    packed[starts[:, None] + np.arange(len(frame.prefix))] = frame.prefix
    packed[ends[:, None] - len(frame.suffix) + np.arange(len(frame.suffix))] = frame.suffix
    # Position of each body token within its own window, for all windows at once.
    within = np.arange(body.sum()) - np.repeat(np.cumsum(body) - body, body)
    source = bounds[segments.document[chosen]] + segments.start[chosen]
    packed[np.repeat(starts + len(frame.prefix), body) + within] = ids[np.repeat(source, body) + within]
    return Pack(packed, np.concatenate([[0], ends]).astype(np.int32), chosen, frame.prompt_length)
