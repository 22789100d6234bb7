"""All passes of a job's models over the documents of a piece, on one worker, and what they cost.

One piece at a time: the passes of the next one wait until the device is free. Texts that a piece holds several times are
encoded once.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from operators.attention.activation import count_pairs
from operators.devices import release_memory, set_threads
from operators.encoding import Encode, Encoder, Lanes
from operators.flops import flops
from operators.inputs import Inputs
from operators.models.files import read_json
from operators.peak import measure_peak
from pipeline.parity import Parity
from pipeline.preparing import SAME_TEXT, Preparer
from pipeline.recipe import ModelRecipe, Pass, Recipe, make_heads

_MOST_LANES = 4
"""More would wait for Python's lock; each then has more threads."""


@dataclass(frozen=True)
class Results:
    """What the passes made of the documents of a piece."""

    values: dict[str, pa.Array]
    """By task, one for each document."""
    failed: dict[int, tuple[str, str]]
    """Row -> reason and detail."""
    statistics: dict[str, float]


class Passes:
    """The models of a recipe, loaded. `threads`: of a CPU worker, 0 for torch's own choice."""

    def __init__(self, recipe: Recipe, preparer: Preparer, threads: int) -> None:
        self._recipe = recipe
        self._preparer = preparer
        self._threads = threads
        if threads:
            set_threads(threads)  # libraries that run exports take the number when they load
        models = dict.fromkeys(task.model for task in recipe.tasks)
        self._configs = {m: read_json(preparer.layout(m).transformer_dir / "config.json", dict) or {} for m in models}
        self._encoders = {model: self._load(model) for model in models}
        self._passes = [(share, self._encode(share, self._encoders[share.model])) for share in recipe.passes]
        self._parity = Parity(recipe, preparer) if recipe.parity_sample else None
        self._one_at_a_time = threading.Lock()
        self._idle_since: float | None = None
        self._peak: float | None = None  # 0 where it cannot be measured

    def _load(self, model: ModelRecipe) -> Encoder:
        """The weights of a model, once for all tasks that use it with the same attention."""
        backend = importlib.import_module(f"operators.encoders.{self._recipe.backend}")
        layout = self._preparer.layout(model)
        options: dict[str, Any] = {"top_k": model.top_k} if model.top_k else {}
        if self._recipe.exports is not None:
            options["exports"] = self._recipe.exports
        loaded: Any = backend.load(layout, self._recipe.device, self._recipe.precision, **options)
        if self._recipe.compile:
            loaded.compile()
        encoder: Encoder = loaded
        return encoder

    def _encode(self, share: Pass, encoder: Encoder) -> Encode:
        heads = make_heads(share, self._preparer.layout(share.model))
        frame = self._preparer.frame(share.view)
        return Encode(encoder, heads, frame, self._recipe.tokens_per_pack, _lanes(self._threads))

    def __call__(self, documents: pa.Table, *, sample: int = 0, watch: AbstractContextManager[object] | None = None) -> Results:
        """Encode prepared documents; `sample` of them are compared with the reference. `watch` is held while that lasts, and
        not while the piece waits for its turn."""
        asked = time.perf_counter()
        with self._one_at_a_time, watch or nullcontext():
            begun = time.perf_counter()
            idle = begun - self._idle_since if self._idle_since is not None else 0.0
            if self._threads:
                set_threads(self._threads)  # here, since OpenMP keeps the number for each calling thread
            results = self._run(documents)
            ended = time.perf_counter()
            statistics = {"encode_seconds": ended - begun, "wait_seconds": begun - asked, "idle_seconds": idle}
            if self._idle_since is None:
                statistics["workers"] = 1
            else:  # the first piece is for warming up
                statistics |= {"warm_seconds": ended - begun, "warm_tokens": results.statistics["tokens"]}
                statistics |= self._work(results.statistics.get("flops"), ended - begun)
            if self._parity:
                statistics |= self._parity.compare(documents, results.values, results.failed, sample) if sample else {}
            self._preparer.check_unchanged()
            self._idle_since = time.perf_counter()
        return Results(results.values, results.failed, {**results.statistics, **statistics})

    def probe(self, documents: pa.Table) -> None:
        """Encode a document without text beside what these prepared ones have: raises where a model fails on that too."""
        for share, encode in self._passes:
            encode.probe(self._preparer.inputs(documents, share.view))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A stretch of time in which nothing is encoded here, and the devices' memory is left to others."""
        with self._one_at_a_time:
            for encoder in self._encoders.values():
                release_memory(encoder.device)
            yield

    def _work(self, done: float | None, seconds: float) -> dict[str, float]:
        """Operations done and those that the device could have done meanwhile, by the speed of its matrix products."""
        if self._peak is None:
            try:
                self._peak = measure_peak(self._recipe.device, self._recipe.precision) or 0.0
            except RuntimeError:  # a device without room for it; the piece is encoded, and that is what counts
                self._peak = 0.0
        return {"warm_flops": done, "possible_flops": self._peak * seconds} if done is not None and self._peak else {}

    def _run(self, documents: pa.Table) -> Results:
        copies = None
        if SAME_TEXT in documents.column_names:
            _, first, copies = np.unique(documents[SAME_TEXT].to_numpy(), return_index=True, return_inverse=True)
            documents = documents.take(first) if len(first) < len(copies) else documents
        values: dict[str, pa.Array] = {}
        failed: dict[int, tuple[str, str]] = {}
        statistics: Counter[str] = Counter()
        for share, encode in self._passes:
            inputs = self._preparer.inputs(documents, share.view)
            encoded = encode(inputs)
            values |= encoded.values
            for row, failure in encoded.failed.items():
                reason = f"task_failed:{failure.task}" if failure.reason == "task_failed" else failure.reason
                failed.setdefault(row, (reason, failure.detail))
            statistics.update({**encoded.statistics, **self._counts(share, inputs), "encoder_passes": 1})
        if copies is None or len(copies) == documents.num_rows:
            return Results(values, failed, dict(statistics))
        statistics["duplicates"] = len(copies) - documents.num_rows
        spread = {name: column.take(pa.array(copies)) for name, column in values.items()}
        rows = np.flatnonzero(np.isin(copies, list(failed))).tolist()
        return Results(spread, {row: failed[int(copies[row])] for row in rows}, dict(statistics))

    def _counts(self, share: Pass, inputs: Inputs) -> dict[str, float]:
        """What a pass is by its windows' lengths alone."""
        lengths = inputs.sizes + self._preparer.frame(share.view).size
        counts: dict[str, float] = {}
        if getattr(self._encoders[share.model], "fell_back", False):
            counts["precision_fallbacks"] = 1
        if share.model.top_k is not None:
            counts |= count_pairs(lengths, share.model.top_k)
        operations = flops(self._configs[share.model], lengths)
        return counts if operations is None else {**counts, "flops": operations}


def _lanes(threads: int) -> Lanes:
    count = max(1, min(threads, _MOST_LANES))
    return Lanes(count, max(1, threads // count))
