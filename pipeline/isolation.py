"""A suspicious piece is done in a process beside the worker, and taken apart there until exactly the bad rows are found.

The whole piece is tried first; most are only suspicious because they were in flight beside a bad one. What does not come back
is divided in WAYS parts, and so on down to single rows. A row is judged by a process that did nothing else before, and within
the full limit: what is left of earlier rows, or a slow moment, condemns nobody.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.batch import Batch, from_block, to_block, todo_block
from pipeline.errors import TidemillError
from pipeline.guard import Guard, Trouble
from pipeline.ledger.pieces import Todo
from pipeline.limits import Pace
from pipeline.preparing import SAME_TEXT
from pipeline.recipe import Recipe
from pipeline.steps import set_aside

WAYS = 16
"""Parts that a part is divided into: each level costs one process, and every start of one loads the models again."""
MOST_BAD = 10
"""Bad rows beyond the good ones of a piece that are believed; more say that something else is broken."""
_UNSURE_TRIES = 2
_PROBE_SECONDS = 1800.0
"""For loading models, and kernels that are compiled for them."""
_OF_THE_WORKER = ("workers", "wait_seconds", "idle_seconds", "warm_seconds", "warm_tokens", "warm_flops", "possible_flops")
"""Statistics of a worker's speed, to which a process beside it adds nothing."""

Done = TypeVar("Done")
Reason = tuple[str, str]


class Broken(TidemillError):
    """It is not a row: the model, a library or the machine fails whatever it is given. The piece gets no record."""


def take_apart(rows: int, run: Callable[[range], Done], alone: Callable[[], bool]) -> tuple[dict[int, Done], dict[int, Reason]]:
    """Results of the good parts by their first row, and reasons of the bad rows; together they are all of `rows`.

    `run` does some rows, or raises Trouble; `alone` says whether the next call is the first thing its process does. Broken
    where more rows are bad than can be believed."""
    todo = deque([range(rows)])
    good: dict[int, Done] = {}
    bad: dict[int, Reason] = {}
    fine, tries = 0, Counter[int]()
    while todo:
        part = todo.popleft()
        first = alone()
        try:
            good[part.start] = run(part)
            fine += len(part)
        except Trouble as trouble:
            if len(part) > 1:
                todo.extend(_divide(part))  # last, so that what is good is known before single rows are judged
                continue
            if not rows:
                raise Broken(f"a piece without rows fails: {trouble}") from trouble
            tries[part.start] += 1
            if trouble.died and (not first or (not trouble.sure and tries[part.start] < _UNSURE_TRIES)):
                todo.appendleft(part)  # its process is gone, so this time it is alone
                continue
            bad[part.start] = (trouble.reason, trouble.detail)
            if len(bad) > MOST_BAD + fine:
                raise Broken(
                    f"{len(bad)} rows fail and {fine} do not (the last: {trouble}); that many bad rows are none, "
                    "look at the model, its libraries and the machine"
                ) from trouble
    return good, bad


def _divide(part: range) -> list[range]:
    """WAYS parts, as even as can be, none empty."""
    bounds = np.linspace(part.start, part.stop, min(WAYS, len(part)) + 1).astype(int).tolist()
    return [range(start, stop) for start, stop in pairwise(bounds)]


class Isolation:
    """Does the stages of suspicious pieces; one piece at a time."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self._recipe = recipe
        # Half of a comparison with the reference would be none.
        self._guard = Guard(replace(recipe, parity_sample=0), threads, recipe.limits.beside_memory)
        self._lock = threading.Lock()
        self._broken: dict[str, str] = {}

    def read(self, todo: Todo) -> Batch | None:
        """The next piece of a span, None where none follows. Raises Trouble where reading it kills the process."""
        with self._lock:
            for tries in range(_UNSURE_TRIES):
                self._start()
                try:
                    block = self._guard.call("read", todo_block(todo), self._recipe.limits.reading(todo.span.shard.size))
                    break
                except Trouble as trouble:
                    if trouble.sure or tries == _UNSURE_TRIES - 1:
                        raise
        return from_block(block)[0] if block.num_rows else None

    def __call__(self, stage: str, batch: Batch, pace: Pace) -> Batch:
        """`batch` one stage further (prepare or encode), without its bad rows, which are in its quarantine.

        Raises Broken where the stage fails on a document without text as well, or on more rows than can be believed."""
        with self._lock:
            if stage in self._broken:
                raise Broken(self._broken[stage])
            probed = False

            def run(part: range) -> Batch:
                nonlocal probed
                if not (probed and self._guard.running):
                    self._probe(stage, batch)
                    probed = True
                some = batch.documents.slice(part.start, len(part))
                limit = pace.limit(some.nbytes) if len(part) <= 1 else pace.probe(some.nbytes)
                asked = replace(batch, documents=some, quarantine=batch.quarantine.slice(0, 0), statistics={})
                (done,) = from_block(self._guard.call(stage, to_block(asked), limit))
                pace.add(some.nbytes, done.statistics.get(f"{stage}_seconds", 0.0))
                return done

            good, bad = take_apart(batch.documents.num_rows, run, lambda: self._guard.untouched or not self._guard.running)
            if not good:  # what the rows of the next stage look like
                good = {0: run(range(0))}
        return self._together(batch, [good[start] for start in sorted(good)], bad)

    def rest(self) -> None:
        """End the process, unless it is at work: it holds models of its own."""
        if self._lock.acquire(blocking=False):
            try:
                self._guard.end()
            finally:
                self._lock.release()

    def _start(self) -> None:
        try:
            self._guard.start()
        except Trouble as trouble:
            raise Broken(f"the process beside the worker does not start ({trouble}); look at its log") from trouble

    def _probe(self, stage: str, batch: Batch) -> None:
        """A fresh process shows that it can do the stage at all."""
        few = replace(batch, documents=batch.documents.slice(0, 1))
        self._start()
        try:
            self._guard.call(f"probe:{stage}", to_block(few), _PROBE_SECONDS, counts=False)
        except Trouble as trouble:
            why = f"to {stage} a document without text fails as well ({trouble}); look at the model and its libraries"
            if trouble.sure:
                self._broken[stage] = why
            raise Broken(why) from trouble

    def _together(self, batch: Batch, parts: list[Batch], bad: dict[int, Reason]) -> Batch:
        """The parts as one piece again."""
        statistics = Counter(batch.statistics)
        for part in parts:
            statistics.update({k: v for k, v in part.statistics.items() if k not in _OF_THE_WORKER})
        # Tokens serve all tasks: the first one speaks for them, as in an encoder's failures.
        task_failed = f"task_failed:{self._recipe.tasks[0].name}"
        reasons = {row: (task_failed if why == "task_failed" else why, detail) for row, (why, detail) in bad.items()}
        aside = set_aside(replace(batch, quarantine=batch.quarantine.slice(0, 0)), reasons).quarantine
        tables = [part.documents for part in parts]
        if len(tables) > 1:  # numbers of one part mean nothing in another
            tables = [t.drop_columns([SAME_TEXT]) if SAME_TEXT in t.column_names else t for t in tables]
        return replace(
            batch,
            documents=pa.concat_tables(tables),
            quarantine=pa.concat_tables([batch.quarantine, *(part.quarantine for part in parts), aside]),
            statistics={**statistics, "taken_apart": 1.0},
        )
