"""How fast this machine multiplies matrices of a model's sizes: the limit that engines are compared with (MFU)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.workers import Run, Variant

PRECISIONS = ("fp32", "bf16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROWS = 2048
"""Tokens of a product; a pack has about as many."""

_SECONDS = 0.15
"""Of each product, by each way."""


def variant(hidden: int, intermediate: int) -> Variant:
    """Measures within the rounds of the engines; its values are GFLOP/s for each of PRECISIONS."""
    return Variant("matrix products", "benchmarks.ceiling:measure", {"hidden": hidden, "intermediate": intermediate})


def measure(sample: Sequence[object], hidden: int, intermediate: int) -> Run:
    """For each precision, the rate over one layer's four products, each by the fastest of torch's ways; no use of `sample`."""
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden))

    @torch.inference_mode()
    def run() -> list[float]:
        work = sum(2 * _ROWS * a * b for a, b in shapes)
        return [work / sum(min(_seconds(way) for way in _ways(a, b, d)) for a, b in shapes) / 1e9 for d in _DTYPES.values()]

    return run


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
