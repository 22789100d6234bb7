"""Encode: the documents of a piece in, one value for each document and task out.

Segments are packed across documents, encoded once for all heads that share them, scored on the device, and put back by
segment; each head then makes one value of each document's scores. Trouble costs as little as it can: out of memory halves
the packs for a while and goes on, and a pack that fails is bisected until the guilty document is alone.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from operators.aggregation import Floats
from operators.budget import Budget
from operators.devices import free_memory, is_out_of_memory, peak_memory, release_memory, set_threads, start_peak
from operators.inputs import Companion, Inputs, Tokens, make_inputs, repeat_companions
from operators.packing import Frame, Pack, build_pack, plan_packs, ranges
from operators.segmentation import Ints, Windowing
from operators.transfer import to_device


class Encoder(Protocol):
    """A model that turns tokens into vectors; made by `operators.encoders.<backend>.load(layout, device, precision)`."""

    hidden_size: int
    device: torch.device
    padded: bool
    """Whether padding counts against the token budget."""
    concurrent: bool
    """Whether `encode` may be called by several threads at once."""

    def encode(self, pack: Pack) -> Tensor:
        """float [T, H] on `device`: a vector for each token of the pack."""
        ...


class Head(ABC):
    """What is made of the vectors; `operators.heads.<name>.Head(config, layout)`, which needs no weights."""

    type: pa.DataType
    """Type of the column that it makes."""
    width: int
    """P: numbers in one row of scores."""
    wants_offsets: bool = False
    """Whether it reads `tokens.spans`."""
    wants_text: bool = False
    """Whether it reads the documents' texts, as column `operators.schema.TEXT` of `inputs.columns`."""
    prompt: str = ""
    """What the tokenizer puts before every text; always empty where there are companions."""
    companion: Companion | None = None
    """The second texts that it reads, if any."""
    columns: Mapping[str, pa.DataType] = MappingProxyType({})
    """Columns of the input that it reads beside the text, with the types that they must have."""
    windows: Literal["balanced", "strided"] = "balanced"
    """`operators.segmentation.Windowing.style`."""

    def load(self, device: torch.device) -> None:  # noqa: B027 -- a head without weights has nothing to do here
        """Load the head's own weights. ValueError where the model's files lack them."""

    def rows(self, inputs: Inputs) -> Ints:
        """int64 [S]: rows of scores that each segment gives; one, if not said otherwise."""
        return np.ones(len(inputs.segments.length), np.int64)

    @abstractmethod
    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [R, P] on the device: the rows of the pack's segments, one segment after the other."""

    @abstractmethod
    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """One value for each document, in order; null where there is none. `scores` is float32 [R, P], segment after segment,
        and finite: documents with other numbers are known to have failed, and theirs are 0 here."""

    @abstractmethod
    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: how near each value is to the reference's, 1 being the same (cosine, or share of what agrees)."""


@dataclass(frozen=True)
class Failure:
    """Why a document has no values: the task that failed, empty where no task is to blame."""

    task: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Encoded:
    """`values`: for each task one value for each document, null where it is in `failed`."""

    values: dict[str, pa.Array]
    failed: dict[int, Failure]
    statistics: dict[str, int]
    """segments and tokens (specials and overlaps included) encoded, padding beside them, packs, and times that memory ran out."""


@dataclass(frozen=True)
class Lanes:
    """Packs that are encoded at once, each on so many threads of a CPU."""

    count: int = 1
    threads: int = 1


@dataclass
class _Work:
    """One call's inputs, and what is known of them so far."""

    inputs: Inputs
    scores: dict[str, Tensor]
    offsets: dict[str, Ints]
    """int64 [S + 1]: rows of each segment in `scores`."""
    failed: dict[int, Failure] = field(default_factory=dict)
    packs: int = 0
    padding: int = 0
    out_of_memory: int = 0


class Encode:
    """One pass of an encoder for all `heads` (by task) that read the same windows of the same model.

    `budget`: tokens in one pack at most. The first full pack on an accelerator tells how many its memory holds; when memory
    runs out nevertheless, packs are smaller for a while (`operators.budget`). `lanes`: where the encoder allows several, that
    is faster than all threads on one pack, whose matrices are too small to share."""

    def __init__(self, encoder: Encoder, heads: Mapping[str, Head], frame: Frame, budget: int, lanes: Lanes = Lanes()) -> None:
        for head in heads.values():
            head.load(encoder.device)
        self._encoder = encoder
        self.heads = heads
        self._frame = frame
        self._budget = Budget(budget)
        self._measured = encoder.device.type == "cpu"
        self._lanes = lanes.count if encoder.concurrent else 1
        self._counting = threading.Lock()
        # OpenMP keeps the number of threads for each thread that calls it.
        self._pool = ThreadPoolExecutor(self._lanes, "encode", set_threads, (lanes.threads,)) if self._lanes > 1 else None

    @property
    def budget(self) -> int:
        """Tokens in one pack, as things are."""
        return self._budget.tokens

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> Encoded:
        """Encode all documents of `inputs`. Raises only where the model fails whatever it is given."""
        offsets = {task: np.concatenate([[0], np.cumsum(head.rows(inputs))]) for task, head in self.heads.items()}
        scores = {
            task: torch.full((int(offsets[task][-1]), head.width), torch.nan, device=self._encoder.device)
            for task, head in self.heads.items()
        }
        work = _Work(inputs, scores, offsets)
        for document in inputs.entry_document[inputs.segments.too_long].tolist():
            work.failed[document] = Failure("", "too_long", "more tokens than one window holds")
        self._run(work)
        values = {task: self._finish(work, task) for task in self.heads}
        statistics = {
            "segments": len(inputs.segments.document),
            "tokens": int(self._lengths(inputs).sum()),
            "padding": work.padding,
            "packs": work.packs,
            "out_of_memory": work.out_of_memory,
        }
        if work.failed:
            null = np.isin(np.arange(inputs.n_documents), list(work.failed))
            values = {task: column.take(pa.array(np.arange(inputs.n_documents), mask=null)) for task, column in values.items()}
        return Encoded(values, work.failed, statistics)

    def _finish(self, work: _Work, task: str) -> pa.Array:
        """The head's values; documents whose scores or values are not finite have failed."""
        scores = work.scores[task].cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        segments = np.searchsorted(work.offsets[task], broken, side="right") - 1
        documents = work.inputs.entry_document[work.inputs.segments.document[segments]]
        scores[broken] = 0
        values = self.heads[task].finish(scores, work.inputs)
        missing = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
        for document in np.unique(np.concatenate([documents, missing])).tolist():
            work.failed.setdefault(
                document, Failure(task, "task_failed", "there is no result, or it holds a number that is not finite")
            )
        return values

    def _run(self, work: _Work) -> None:
        """Fill `work.scores`; rows of documents that fail are left NaN."""
        documents = work.inputs.entry_document[work.inputs.segments.document]
        todo = self._plan(work, np.arange(len(documents)))
        if self._pool is not None:
            problems = self._pool.map(lambda chosen: self._attempt(work, chosen), reversed(todo))
            # Packs that failed are looked into below, one at a time.
            todo = [chosen for chosen, problem in zip(reversed(todo), list(problems), strict=True) if problem is not None]
        while todo:
            chosen = todo.pop()
            failed = np.isin(documents[chosen], list(work.failed)) if work.failed else np.zeros(len(chosen), bool)
            chosen = chosen[~failed]
            if not len(chosen):
                continue
            planned = self.budget
            problem = self._measure(work, chosen)
            if problem is not None:
                todo += self._recover(work, chosen, documents, problem)
            if self.budget != planned and todo:
                todo = self._plan(work, np.concatenate(todo))

    def _recover(self, work: _Work, chosen: Ints, documents: Ints, problem: Failure) -> list[Ints]:
        """After a pack that failed: what to try again; a document that is alone has failed. `documents`: of each segment."""
        document, alone = int(documents[chosen[0]]), len(chosen) == 1
        if problem.reason != "oom":
            self.probe(work.inputs)
            if alone:
                work.failed[document] = problem
                return []
            half = len(chosen) // 2
            return [chosen[half:], chosen[:half]]
        work.out_of_memory += 1
        release_memory(self._encoder.device)
        size = self._tokens(work, chosen)
        if not alone:
            self._budget.exhausted(size)
            return [chosen]
        if self._attempt(work, chosen) is not None:  # once more, now that memory was freed
            work.failed[document] = Failure("", "oom", f"a window of {size} tokens does not fit the device's memory")
        return []

    def _measure(self, work: _Work, chosen: Ints) -> Failure | None:
        """As `_attempt`; the first full pack on an accelerator shows how many tokens its memory holds."""
        device, tokens = self._encoder.device, self._tokens(work, chosen)
        free = None if self._measured or 2 * tokens < self.budget else free_memory(device)
        if free is None:
            return self._attempt(work, chosen)
        before = start_peak(device)
        problem = self._attempt(work, chosen)
        if problem is None:
            self._budget.fit(peak_memory(device) - before, tokens, free)
            self._measured = True
        return problem

    @torch.inference_mode()  # which is kept for each thread
    def _attempt(self, work: _Work, chosen: Ints) -> Failure | None:
        """Encode one pack; None, or what went wrong."""
        task = next(iter(self.heads))  # the encoder serves them all: the first one speaks for it
        try:
            pack = build_pack(work.inputs, chosen, self._frame)
            hidden = self._encoder.encode(pack)
            for task, head in self.heads.items():
                offsets = work.offsets[task]
                lengths = np.diff(offsets)[chosen]
                rows = np.repeat(offsets[chosen], lengths) + ranges(lengths)
                work.scores[task][to_device(rows, self._encoder.device)] = head.score(hidden, pack, work.inputs)
        except Exception as error:  # noqa: BLE001 -- any document may break any model; its text stays out of the message
            return Failure("", "oom", "") if is_out_of_memory(error) else Failure(task, "task_failed", type(error).__name__)
        with self._counting:
            work.packs += 1
            work.padding += pack.max_length * len(chosen) - len(pack.input_ids) if self._encoder.padded else 0
            self._budget.went_well()
        return None

    @torch.inference_mode()
    def probe(self, inputs: Inputs) -> None:
        """Encode a document without text: raises where the model is broken, whatever it is given."""
        nothing = np.empty(0, np.int32)
        tokens = Tokens(nothing, np.zeros(2, np.int64), np.empty((0, 2), np.int32))
        companions = repeat_companions([nothing], 1, first=inputs.companions.first) if inputs.companions else None
        empty = make_inputs(tokens, Windowing(1, 0), companions, inputs.columns.slice(0, 1))
        pack = build_pack(empty, np.zeros(1, np.int64), self._frame)
        hidden = self._encoder.encode(pack)
        for head in self.heads.values():
            head.score(hidden, pack, empty)

    def _plan(self, work: _Work, chosen: Ints) -> list[Ints]:
        """Packs of the segments `chosen`, the longest last, where they are taken from first."""
        lengths = self._lengths(work.inputs)[chosen]
        # Fewer tokens than fill all lanes are shared out.
        budget = min(self.budget, -(-int(lengths.sum()) // self._lanes)) if self._lanes > 1 else self.budget
        packs = plan_packs(lengths, budget, padded=self._encoder.padded)
        return [chosen[pack] for pack in reversed(packs)]

    def _lengths(self, inputs: Inputs) -> Ints:
        return inputs.sizes + self._frame.size

    def _tokens(self, work: _Work, chosen: Ints) -> int:
        """Tokens of a pack as the budget counts them."""
        lengths = self._lengths(work.inputs)[chosen]
        return int(lengths.max() * len(lengths) if self._encoder.padded else lengths.sum())
