"""Whole jobs at one and at four times a corpus, next to what the same run finds for matrix products and for encoding alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from benchmarks import ceiling, corpus, engines, reporting
from benchmarks.jobs import Job, run_job
from benchmarks.reporting import Failed, Usage, mebibytes, number, runs, table
from benchmarks.workers import compare
from operators.models.repository import resolve

Runs = Sequence[tuple[Usage, dict[str, Any]]]
"""What each run took, and its report."""

KINDS = [f"{engine} {precision}" for engine in ("local", "ray") for precision in ceiling.PRECISIONS]
"""Engine and precision of the jobs."""
_SIZES = {"1x": 1, "4x": 4}
_SHARDS = 8
"""Of the smaller corpus; the larger one has as large ones, but more."""
_MAKE = "benchmarks.engines:tidemill"


@dataclass
class Bare:
    """What whole jobs are compared with, by precision and round."""

    products: dict[str, list[float]] = field(default_factory=dict)
    """GFLOP/s of matrix products."""
    encoding: dict[str, list[float]] = field(default_factory=dict)
    """Tokens/s of tokenizing and encoding, as shipped."""

    def measure(self, model: Path, windows: Sequence[str], tokens: int) -> list[str]:
        """One more round, over windows of `tokens` tokens; what did not run, and why."""
        config = json.loads((model / "config.json").read_text())
        shipped = [engines.ours(_MAKE, model, precision)[0] for precision in ceiling.PRECISIONS]
        limit = ceiling.variant(config["hidden_size"], config["intermediate_size"])
        results = compare([*shipped, limit], windows, 1)
        *encoders, products = results
        for precision, rates in ceiling.by_precision(products.values).items():
            self.products.setdefault(precision, []).extend(rates)
        for precision, result in zip(ceiling.PRECISIONS, encoders, strict=True):
            self.encoding.setdefault(precision, []).extend(tokens / usage.wall for usage in result.usages)
        return [f"* {result.variant.name} did not run: {result.reason}" for result in results if result.reason]


def section(folder: Path, tokens: int, sample: int, rounds: int, kinds: Sequence[str] = KINDS) -> str:
    """`kinds` of jobs on a corpus of `tokens` tokens and on a larger one; encoding alone on some `sample` tokens of 1x."""
    lines = []
    for size, factor in _SIZES.items():
        found = corpus.build(folder / size, corpus.long_tail(tokens * factor), _SHARDS * factor)
        lines.append(f"* {size}: " + ", ".join(f"{key} {value:,}" for key, value in found.items()))
    model = resolve(corpus.MODEL).path
    windows = engines.windows(pq.read_table(folder / "1x" / "shards")["text"].to_pylist(), corpus.tokenizer(), 254)
    windows = windows[:: max(1, tokens // sample)]
    encoded = int((corpus.count_tokens(windows) + 2).sum())
    bare = Bare()
    failed: list[str] = []
    done: dict[tuple[str, str, str], list[tuple[Usage, dict[str, Any]]]] = {}
    for number_ in range(rounds):
        failed += bare.measure(model, windows, encoded)
        for size in _SIZES:
            for engine, precision in map(str.split, kinds):
                print(f"round {number_ + 1} of {rounds}: {engine} {precision} {size}", file=sys.stderr, flush=True)
                try:
                    run = run_job(Job(engine, precision), folder / size, folder / "job")
                except Failed as error:
                    failed.append(f"* {engine} {precision} {size} did not run: {error}")
                    continue
                done.setdefault((engine, precision, size), []).append(run)
    lines.append(f"* encoding alone: {len(windows)} windows of 1x, {encoded:,} tokens, each round in fresh processes")
    return "\n\n".join([*report(done, bare, "\n".join(lines)), *failed])


def report(done: dict[tuple[str, str, str], list[tuple[Usage, dict[str, Any]]]], bare: Bare, about: str) -> list[str]:
    """The tables of what ran at both sizes: engine, precision and size -> its runs. `about`: of the corpora."""
    both = [
        (e, p, done[e, p, "1x"], done[e, p, "4x"]) for e, p in map(str.split, KINDS) if {(e, p, "1x"), (e, p, "4x")} <= set(done)
    ]
    alone = ", ".join(f"{p} {median(r):,.0f} tokens/s (runs: {runs(r)})" for p, r in bare.encoding.items() if r)
    return [
        "## Whole jobs\n\nall-MiniLM-L6-v2, Parquet to table, whole documents.",
        about,
        table(["job", *_twice("seconds", "runs", "tokens/s", "warm tokens/s"), "warm 4x to 1x"], [_speed(*row) for row in both]),
        "Seconds and tokens/s are of the whole command; warm: of each worker's pieces after the first, waiting included, by the "
        "job's own report.",
        table(
            ["job", *_twice("of the ceiling", "of the bare engine", "idle", "MFU", "peak MiB"), "cores used", "cores free"],
            [_shares(*row, bare) for row in both],
        ),
        "Of the ceiling: operations of the encoder, by formula, over the whole command's time, by the rate of matrix products. "
        "Of the bare engine: tokens/s of the whole command by those of encoding alone, tokenizing included. "
        "Idle (of the encoders) and MFU (after each worker's first piece) are by the job's own report. Cores are of 4x.",
        f"{ceiling.describe(bare.products)} Encoding alone: {alone or 'not measured'}.",
    ]


def _twice(*names: str) -> list[str]:
    return [f"{name} {size}" for name in names for size in _SIZES]


def _speed(engine: str, precision: str, *sizes: Runs) -> list[object]:
    warm = [_figure(size, "warm_tokens_per_second") for size in sizes]
    return [
        f"{engine} {precision}",
        *(number(_wall(size), 1) for size in sizes),
        *(runs([usage.wall for usage, _ in size], 1) for size in sizes),
        *(number(_rate(size)) for size in sizes),
        *(number(rate) for rate in warm),
        f"{warm[1] / warm[0]:.3f}" if warm[0] and warm[1] else None,
    ]


def _shares(engine: str, precision: str, small: Runs, large: Runs, bare: Bare) -> list[object]:
    sizes = (small, large)
    products, encoding = bare.products.get(precision), bare.encoding.get(precision)
    return [
        f"{engine} {precision}",
        *(_share(_operations(size) / 1e9 / _wall(size), products) for size in sizes),
        *(_share(_rate(size), encoding) for size in sizes),
        *(_percent(_figure(size, "idle_share"), 1) for size in sizes),
        *(_percent(_figure(size, "mfu")) for size in sizes),
        *(mebibytes([usage.peak_bytes for usage, _ in size]) for size in sizes),
        *reporting.shares([usage for usage, _ in large]),
    ]


def _wall(found: Runs) -> float:
    return median(usage.wall for usage, _ in found)


def _rate(found: Runs) -> float:
    """Tokens in a second of the whole command."""
    return float(found[0][1]["tokens"]) / _wall(found)


def _operations(found: Runs) -> float:
    """Of the encoder's matrix products over the corpus (`operators.flops`)."""
    return float(found[0][1]["statistics"]["flops"])


def _figure(found: Runs, key: str) -> float | None:
    """The median of one of the reports' figures; None where a job was too small for it."""
    figures = [report["speed"][key] for _, report in found]
    return None if None in figures else median(figures)


def _share(value: float, limits: Sequence[float] | None) -> str | None:
    return _percent(value / median(limits)) if limits else None


def _percent(value: float | None, digits: int = 0) -> str | None:
    return None if value is None else f"{value:.{digits}%}"
