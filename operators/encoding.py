"""Encode: tokens of a piece's documents in, one value for each document out.

Segments are packed across documents, encoded, scored on the device, and put back by segment; the head then makes one value
of each document's scores. Trouble costs as little as it can: out of memory halves the packs and goes on, and a pack that fails
is bisected until the guilty document is alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from operators.aggregation import Floats
from operators.packing import Frame, Pack, build_pack, plan_packs
from operators.segmentation import Ints, Segments, Windowing, segment
from operators.tokenization import Tokenizer, Tokens

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""How devices say it; not all of them raise torch.OutOfMemoryError."""


class Encoder(Protocol):
    """A model that turns tokens into vectors; made by `operators.encoders.<backend>.load(layout, device, precision)`."""

    hidden_size: int
    device: torch.device
    padded: bool
    """Whether padding counts against the token budget."""

    def encode(self, pack: Pack) -> Tensor:
        """float [T, H] on `device`: a vector for each token of the pack."""
        ...


class Head(Protocol):
    """What is made of the vectors; `operators.heads.<name>.Head(config, layout)`, which needs no weights."""

    type: pa.DataType
    """Type of the column that it makes."""
    wants_offsets: bool
    """Whether `finish` reads `tokens.spans`."""
    prompt: str
    """What the tokenizer puts before every text."""
    width: int
    """P: numbers for each segment."""

    def load(self, device: torch.device) -> None:
        """Load the head's own weights."""
        ...

    def score(self, hidden_TH: Tensor, pack: Pack) -> Tensor:
        """float32 [S, P] on the device, for the S segments of the pack."""
        ...

    def finish(self, scores: Floats, segments: Segments, tokens: Tokens) -> pa.Array:
        """One value for each document, in order; null where its scores are not finite. `scores` is float32 [S, P]."""
        ...


@dataclass(frozen=True)
class Encoded:
    """`values`: one for each document, null where it is in `failed` (document -> reason, detail)."""

    values: pa.Array
    failed: dict[int, tuple[str, str]]
    statistics: dict[str, int]
    """segments and tokens (specials and overlaps included) encoded, packs, and times that memory ran out."""


@dataclass
class _Work:
    """One call's documents, their segments, and what is known of them so far."""

    tokens: Tokens
    segments: Segments
    scores: Tensor
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    packs: int = 0
    out_of_memory: int = 0


class Encode:
    """An encoder with a head. `budget`: tokens in one pack; halved for good when memory runs out."""

    def __init__(self, encoder: Encoder, head: Head, tokenizer: Tokenizer, windowing: Windowing, budget: int) -> None:
        head.load(encoder.device)
        self._encoder = encoder
        self._head = head
        self._frame: Frame = tokenizer.frame
        self._windowing = windowing
        self.budget = budget

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> Encoded:
        """Encode all documents of `tokens`. Raises only where the model fails whatever it is given."""
        segments = segment(np.diff(tokens.bounds), self._windowing)
        work = _Work(
            tokens, segments, torch.full((len(segments.document), self._head.width), torch.nan, device=self._encoder.device)
        )
        for document in np.flatnonzero(segments.too_long).tolist():
            work.failed[document] = ("too_long", "more tokens than one window holds")
        self._run(work)
        values = self._head.finish(work.scores.cpu().numpy(), segments, tokens)
        for document in np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist():
            work.failed.setdefault(document, ("task_failed", "the result holds a number that is not finite"))
        statistics = {
            "segments": len(segments.document),
            "tokens": int(self._lengths(segments).sum()),
            "packs": work.packs,
            "out_of_memory": work.out_of_memory,
        }
        return Encoded(values, work.failed, statistics)

    def _run(self, work: _Work) -> None:
        """Fill `work.scores`; segments of documents that fail are left NaN."""
        todo = self._plan(work, np.arange(len(work.segments.document)))
        while todo:
            chosen = todo.pop()
            failed = np.isin(work.segments.document[chosen], list(work.failed)) if work.failed else np.zeros(len(chosen), bool)
            chosen = chosen[~failed]
            problem = self._attempt(work, chosen) if len(chosen) else None
            if problem is None:
                continue
            alone = len(chosen) == 1
            document = int(work.segments.document[chosen[0]])
            if problem == "oom":
                work.out_of_memory += 1
                self._free_memory()
                size = self._tokens(work, chosen)
                if not alone:
                    self.budget = max(1, min(self.budget, size) // 2)
                    todo = self._plan(work, np.concatenate([*todo, chosen]))
                elif self._attempt(work, chosen) is not None:  # once more, now that memory was freed
                    work.failed[document] = ("oom", f"a window of {size} tokens does not fit the device's memory")
            else:
                self._probe()
                if alone:
                    work.failed[document] = ("task_failed", problem)
                else:
                    half = len(chosen) // 2
                    todo += [chosen[half:], chosen[:half]]

    def _attempt(self, work: _Work, chosen: Ints) -> str | None:
        """Encode one pack; None, or what went wrong: `oom` or the exception's class."""
        try:
            pack = build_pack(work.tokens.ids, work.tokens.bounds, work.segments, chosen, self._frame)
            scores = self._head.score(self._encoder.encode(pack), pack)
            work.scores[torch.from_numpy(chosen).to(self._encoder.device)] = scores
        except Exception as error:  # noqa: BLE001 -- any document may break any model; its text stays out of the message
            return "oom" if _is_out_of_memory(error) else type(error).__name__
        work.packs += 1
        return None

    def _probe(self) -> None:
        """Encode a document without text: raises where the model is broken, whatever it is given."""
        pack = build_pack(
            np.empty(0, np.int32),
            np.zeros(2, np.int64),
            segment(np.zeros(1, np.int64), self._windowing),
            np.zeros(1, np.int64),
            self._frame,
        )
        self._head.score(self._encoder.encode(pack), pack)

    def _plan(self, work: _Work, chosen: Ints) -> list[Ints]:
        """Packs of the segments `chosen`, the longest last, where they are taken from first."""
        packs = plan_packs(self._lengths(work.segments)[chosen], self.budget, padded=self._encoder.padded)
        return [chosen[pack] for pack in reversed(packs)]

    def _lengths(self, segments: Segments) -> Ints:
        return segments.length + self._frame.size

    def _tokens(self, work: _Work, chosen: Ints) -> int:
        """Tokens of a pack as the budget counts them."""
        lengths = self._lengths(work.segments)[chosen]
        return int(lengths.max() * len(lengths) if self._encoder.padded else lengths.sum())

    def _free_memory(self) -> None:
        if self._encoder.device.type != "cpu":
            torch.get_device_module(self._encoder.device).empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
