"""The local engine: the same stages in this process, one piece after another. For small jobs, notebooks and tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    """Yield an outcome for each piece of `todos`, in their order."""
    stages = Stages(recipe, threads=placement.threads)
    stages.load()
    for todo in todos:
        items = stages.read(todo)
        while True:
            with stop.interruptible():
                item = next(items, None)
                if item is None:
                    break
                encoded = stages.encode(stages.prepare(item))
            yield stages.write(encoded)


def shutdown() -> None:
    """Nothing was started."""
