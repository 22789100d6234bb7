"""Packs: segments of many documents laid end to end for one pass of an encoder.

Segments are sorted by length, across documents, so that an encoder that pads wastes little, and cut where a token budget is
full. What a document gets does not depend on the pack that its segments met in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from operators.inputs import Ids, Inputs
from operators.segmentation import Ints


@dataclass(frozen=True)
class Frame:
    """What stands around the texts in every window: special tokens, and the prompt before the body.

    A window of one text is prefix, text, suffix; one of two texts is prefix, first, middle, second, suffix."""

    prefix: Ids
    """int32: special tokens and prompt before the (first) text."""
    suffix: Ids
    """int32: special tokens at the end."""
    prompt_length: int = 0
    """Leading tokens of a window that pooling leaves out where the model excludes its prompt; 0 without a prompt."""
    middle: Ids = field(default_factory=lambda: np.empty(0, np.int32))
    """int32: special tokens between two texts."""
    types: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    """Token types of prefix, first text, middle, second text and suffix."""

    @property
    def size(self) -> int:
        """Tokens of a window that are of no text."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True)
class Pack:
    """S windows, T tokens, without padding: window i is `input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    input_ids: Ids
    """int32 [T]"""
    cu_seqlens: Ids
    """int32 [S + 1]"""
    segments: Ints
    """int64 [S]: which of the piece's segments these are."""
    prompt_length: int = 0
    """As `Frame.prompt_length`."""
    token_types: Ids | None = None
    """int32 [T]; None where all are 0."""
    body: Ints | None = None
    """int64 [S]: where the first body token of each window is in the pack."""

    @property
    def lengths(self) -> Ids:
        """int32 [S]: tokens of each window."""
        return np.diff(self.cu_seqlens)

    @property
    def max_length(self) -> int:
        """Tokens of the longest window."""
        return int(self.lengths.max())


def token_types(pack: Pack) -> Ints:
    """int64 [T]"""
    types = pack.token_types
    return np.zeros(len(pack.input_ids), np.int64) if types is None else types.astype(np.int64)


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


def build_pack(inputs: Inputs, chosen: Ints, frame: Frame) -> Pack:
    """Lay the segments numbered in `chosen` end to end, framed, each beside its companion where there is one."""
    segments, companions = inputs.segments, inputs.companions
    body = segments.length[chosen]
    entry = segments.document[chosen]
    beside = companions.lengths[entry] if companions else np.zeros(len(chosen), np.int64)
    lengths = body + beside + frame.size
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first_at = starts + len(frame.prefix)
    companion_first = companions is not None and companions.first
    second_at = first_at + (beside if companion_first else body) + len(frame.middle)
    body_at, companion_at = (second_at, first_at) if companion_first else (first_at, second_at)

    packed = np.empty(ends[-1], np.int32)
    for at, run in (
        (starts, frame.prefix),
        (second_at - len(frame.middle), frame.middle),
        (ends - len(frame.suffix), frame.suffix),
    ):
        packed[at[:, None] + np.arange(len(run))] = run
    _copy(packed, body_at, inputs.tokens.ids, inputs.body_starts[entry] + segments.start[chosen], body)
    if companions:
        _copy(packed, companion_at, companions.ids, companions.bounds[entry], beside)
    types = None
    if any(frame.types):
        first = beside if companion_first else body
        parts = np.stack([np.full(len(chosen), len(frame.prefix)), first, np.full(len(chosen), len(frame.middle))])
        rest = body + beside - first
        parts = np.concatenate([parts, rest[None], np.full((1, len(chosen)), len(frame.suffix))])
        types = np.repeat(np.tile(np.array(frame.types, np.int32), len(chosen)), parts.T.reshape(-1))
    return Pack(packed, np.concatenate([[0], ends]).astype(np.int32), chosen, frame.prompt_length, types, body_at)


def pad_tail(pack: Pack, tokens: int) -> Pack:
    """The pack with windows of no segment behind its own, so that it has `tokens` tokens; none is longer than its longest.

    `segments` and `body` stay as they are: they speak of the first windows, and what is encoded behind them is to be dropped."""
    used, longest = len(pack.input_ids), pack.max_length
    ends = np.append(np.arange(used + longest, tokens, longest), tokens) if tokens > used else np.empty(0)
    # The first id stands for all: any real token will do.
    ids = np.concatenate([pack.input_ids, np.full(tokens - used, pack.input_ids[0])])
    types = None if pack.token_types is None else np.concatenate([pack.token_types, np.zeros(tokens - used, np.int32)])
    return replace(pack, input_ids=ids, cu_seqlens=np.concatenate([pack.cu_seqlens, ends]).astype(np.int32), token_types=types)


def _copy(target: Ids, at: Ints, source: Ids, begin: Ints, lengths: Ints) -> None:
    """Copy runs of `lengths` tokens from `begin` in `source` to `at` in `target`, all at once."""
    within = ranges(lengths)
    target[np.repeat(at, lengths) + within] = source[np.repeat(begin, lengths) + within]


def ranges(lengths: Ints) -> Ints:
    """0 .. n - 1 for each n of `lengths`, one after the other."""
    counted: Ints = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return counted
