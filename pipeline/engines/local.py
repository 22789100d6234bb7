"""The local engine: the same stages in this process, one piece after another. For small jobs, notebooks and tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import psutil

from operators.devices import choose
from pipeline.ledger.pieces import Todo
from pipeline.placement import Placement, Resources, Wish, place
from pipeline.recipe import Recipe
from pipeline.stages import Outcome, Stages
from pipeline.stopping import Stop


def placement(kind: str, wish: Wish) -> Placement:
    """One worker, which is this process, with every thread that it may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = 0 if kind == "cpu" else choose(kind).count
    return place(kind, Resources(cpus, devices, psutil.virtual_memory().available), replace(wish, workers=1, stages="fused"))


def execute(recipe: Recipe, placement: Placement, todos: list[Todo], stop: Stop) -> Iterator[Outcome]:
    """Yield an outcome for each piece of `todos`, in their order. While one is encoded, the next is read and the last written."""
    stages = Stages(recipe, threads=placement.threads)
    prepared = (stages.prepare(item) for todo in todos for item in stages.read(todo))
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        ahead = reader.submit(next, prepared, None)
        stages.load()
        written: Future[Outcome] | None = None
        while True:
            with stop.interruptible():
                item = ahead.result()
                if item is None:
                    break
                ahead = reader.submit(next, prepared, None)
                encoded = stages.encode(item)
            if written:
                yield written.result()
            written = writer.submit(stages.write, encoded)
        if written:
            yield written.result()


def shutdown() -> None:
    """Nothing was started."""
