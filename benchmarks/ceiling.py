"""How fast this machine multiplies matrices of a model's sizes: the limit that engines are compared with (MFU)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reporting import runs
from benchmarks.workers import Run, Variant

PRECISIONS = ("fp32", "bf16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROWS = 2048
"""Rows of a product: enough for each library to be at its best."""

_SECONDS = 0.15
"""Of each product, by each way."""


def variant(hidden: int, intermediate: int) -> Variant:
    """Measures within the rounds of the engines; its values are for `by_precision`."""
    return Variant("matrix products", "benchmarks.ceiling:measure", {"hidden": hidden, "intermediate": intermediate})


def measure(sample: Sequence[object], hidden: int, intermediate: int) -> Run:
    """For each precision, the rate over one layer's four products, each by the fastest of torch's ways; no use of `sample`.

    A run gives the rates (GFLOP/s) of all runs so far, the first of which is for warming up."""
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden))
    work = sum(2 * _ROWS * a * b for a, b in shapes)
    found: list[list[float]] = []

    @torch.inference_mode()
    def run() -> list[list[float]]:
        rates = [work / sum(min(_seconds(way) for way in _ways(a, b, d)) for a, b in shapes) / 1e9 for d in _DTYPES.values()]
        found.append(rates)
        return found

    return run


def by_precision(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """GFLOP/s of each round, of what `measure` found; empty where it did not run."""
    return {precision: list(rates) for precision, rates in zip(PRECISIONS, zip(*values[1:], strict=True), strict=False)}


def describe(found: Mapping[str, Sequence[float]]) -> str:
    """A sentence about `by_precision`."""
    each = [f"{precision} {median(rates):,.0f} GFLOP/s (runs: {runs(rates)})" for precision, rates in found.items()]
    return f"Matrix products, all cores, fastest way of torch: {', '.join(each) or 'not measured'}."


def _ways(inputs: int, outputs: int, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """torch's plain linear layer, and oneDNN's with weights laid out beforehand, where this build of torch has it."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((_ROWS, inputs), (outputs, inputs), (outputs,))
    )
    ways: list[Callable[[], Tensor]] = [lambda: F.linear(x, weight, bias)]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""))
    return ways


def _seconds(way: Callable[[], Tensor]) -> float:
    """Of the fastest of as many calls as fit, after one to warm up."""
    way()
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    while (started := time.perf_counter()) < end:
        way()
        best = min(best, time.perf_counter() - started)
    return best
