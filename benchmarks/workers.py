"""Variants of an encoder side by side: each in processes of its own that wait for their turn, measured in interleaved rounds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from benchmarks.peak import peak_bytes
from benchmarks.reporting import CORES, Failed, Usage, busy_seconds

Run = Callable[[], Sequence[Any]]
"""Encodes the whole sample; one value for each item of it, in order."""


@dataclass(frozen=True)
class Variant:
    """One way to encode a sample.

    `make`: `module:function`, called in each of `processes` with its share of the sample and `arguments`; gives a Run."""

    name: str
    make: str
    arguments: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


@dataclass
class Result:
    """What the rounds found of a variant; without usages it did not run, and `reason` says why."""

    variant: Variant
    usages: list[Usage] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    """Of each item of the sample, in the last round."""
    reason: str = ""


class _Team:
    """The processes of one variant. The cores are divided among them, and so is the sample: every n-th item."""

    def __init__(self, variant: Variant, sample: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._size = len(sample)
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(variant.processes):
            mine, theirs = context.Pipe()
            share = list(sample[number :: variant.processes])
            threads = max(1, CORES // variant.processes)
            process = context.Process(target=_serve, args=(theirs, variant, share, threads), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._pipes.append(mine)
            self._processes.append(process)

    def ask(self, question: str) -> list[Any]:
        """The answers of all processes. Failed where one has trouble."""
        for pipe in self._pipes:
            pipe.send(question)
        return self._answers()

    def _answers(self) -> list[Any]:
        answers = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                answers.append(pipe.recv())
            except EOFError:
                process.join()
                raise Failed(f"the process ended with code {process.exitcode}") from None
        for answer in answers:
            if isinstance(answer, Failed):
                raise answer
        return answers

    def values(self) -> list[Any]:
        """Of each item of the sample, in order."""
        values: list[Any] = [None] * self._size
        for number, share in enumerate(self.ask("values")):
            values[number :: len(self._pipes)] = list(share)
        return values

    def measure(self) -> Usage:
        """One run over the whole sample, by all processes at once."""
        busy, started = busy_seconds(), time.perf_counter()
        answers = self.ask("run")
        wall = time.perf_counter() - started
        cpu = sum(seconds for seconds, _ in answers)
        return Usage(wall, cpu, max(0.0, busy_seconds() - busy - cpu), sum(peak for _, peak in answers))

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()  # which they take for the end
            process.join(10)
            process.terminate()


def splits() -> dict[str, tuple[int, int]]:
    """How our encoders may divide the cores: name -> processes, and lanes (packs at once) in each.

    As shipped is what a job's `runtime.workers: auto` does: a worker for every four cores, a lane for each core of it."""
    workers = -(-CORES // 4)
    lanes, half = CORES // workers, max(1, CORES // 2)
    return {
        "as shipped (" + (f"{workers} x " if workers > 1 else "") + f"{lanes} lanes)": (workers, lanes),
        f"1 process x {CORES} threads": (1, 1),
        f"2 processes x {half} thread" + ("s" if half > 1 else ""): (2, 1),
    }


def compare(variants: Sequence[Variant], sample: Sequence[Any], rounds: int) -> list[Result]:
    """Load all variants, let each run once to warm up, then measure `rounds` times one after the other."""
    results = [Result(variant) for variant in variants]
    teams: dict[str, _Team] = {}
    try:
        for result in results:
            teams[result.variant.name] = team = _Team(result.variant, sample)
            _note(f"load {result.variant.name}")
            with _failing(result):
                team.ask("load")
                team.ask("run")
        for number in range(rounds):
            for result in results:
                if not result.reason:
                    _note(f"round {number + 1} of {rounds}: {result.variant.name}")
                    with _failing(result):
                        result.usages.append(teams[result.variant.name].measure())
        for result in results:
            if not result.reason:
                result.values = teams[result.variant.name].values()
    finally:
        for team in teams.values():
            team.close()
    return results


@contextmanager
def _failing(result: Result) -> Iterator[None]:
    """One variant that fails is named, and the others go on."""
    try:
        yield
    except Failed as error:
        result.reason = str(error)
        result.usages.clear()
        _note(f"skipped {result.variant.name}: {error}")


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _serve(pipe: Connection, variant: Variant, sample: Sequence[Any], threads: int) -> None:
    """Body of a process: loads, runs and hands over the values as it is asked."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    run: Run | None = None
    values: Sequence[Any] = []
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            if question == "load":
                module, name = variant.make.split(":")
                run = getattr(importlib.import_module(module), name)(sample, **variant.arguments)
                pipe.send(None)
            elif question == "run":
                assert run is not None
                started = time.process_time()
                values = run()
                pipe.send((time.process_time() - started, peak_bytes()))
            else:
                pipe.send(values)
        except Exception as error:  # noqa: BLE001 -- the parent is told, and names the variant
            pipe.send(Failed(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))


def cosines(values: Sequence[Any], reference: Sequence[Any]) -> tuple[float, float]:
    """Mean and smallest cosine between vectors and those of the reference, item by item."""
    a, b = (np.asarray(v, np.float64) for v in (values, reference))
    found = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(found.mean()), float(found.min())
