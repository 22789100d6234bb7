"""The local engine: the same stages in this process, which reads, encodes and writes at once. For small jobs and notebooks."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import psutil

from operators.devices import choose
from pipeline.engines import GRACE_SECONDS
from pipeline.ledger.pieces import Todo
from pipeline.placement import Placement, Resources, Wish, place
from pipeline.recipe import Recipe
from pipeline.stages import Item, Outcome, Stages
from pipeline.stopping import Stop


def placement(kind: str, wish: Wish) -> Placement:
    """One worker, which is this process, with every thread that it may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = 0 if kind == "cpu" else choose(kind).count
    return place(kind, Resources(cpus, devices, psutil.virtual_memory().available), replace(wish, workers=1, stages="fused"))


def execute(recipe: Recipe, placement: Placement, todos: list[Todo], stop: Stop) -> Iterator[Outcome]:
    """Yield an outcome for each piece of `todos`, in their order. While one is encoded, the next is read and the last written."""
    stages = Stages(recipe, threads=placement.threads)
    try:
        yield from _run(stages, todos, stop)
    finally:
        stages.close()


def _run(stages: Stages, todos: list[Todo], stop: Stop) -> Iterator[Outcome]:
    prepared = _Ahead(stages.prepare(item) for todo in todos for item in stages.read(todo))
    with prepared, ThreadPoolExecutor(1, "write") as writer:
        with stop.interruptible():
            stages.load()
        written: Future[Outcome] | None = None
        while True:
            with stop.interruptible():
                item = prepared.next()
                if item is None:
                    break
                encoded = stages.encode(item)
            if written:
                yield written.result()
            written = writer.submit(stages.write, encoded)
        if written:
            yield written.result()


class _Ahead:
    """The items of an iterator that runs in a thread of its own, one item ahead. At the end the thread gets some time for what
    it is at, and is left alone where that hangs."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._queue: queue.Queue[Item | BaseException | None] = queue.Queue(1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="read", daemon=True)

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(GRACE_SECONDS)

    def next(self) -> Item | None:
        """The next item, None after the last. Raises what the iterator raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 -- raised by next()
            self._put(error)

    def _put(self, item: Item | BaseException | None) -> bool:
        """Whether it was put: not where nobody takes it any more."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False


def workers() -> list[int]:
    """No processes but this one."""
    return []


def shutdown() -> None:
    """Nothing was started."""
