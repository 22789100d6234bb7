"""The speed of matrix products on a device, measured: what an encoder's speed is a share of."""

from __future__ import annotations

import time

import torch

from operators.devices import synchronize
from operators.models import prepacked

_SHAPES = {"cpu": (1024, 768, 3072)}
"""Rows, inputs and outputs of the product: as in the layers of a base model on a CPU, large enough to fill accelerators."""
_LARGE = (8192, 8192, 8192)
_ROUNDS = 5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.inference_mode()
def measure_peak(device: str, precision: str) -> float | None:
    """Operations in a second (a multiply-add is two), the best of a few products; None for a precision that torch has not.

    On a CPU with as many threads as torch has in the calling thread, and the fastest kernel there is for it."""
    if precision not in _DTYPES:
        return None
    rows, inputs, outputs = _SHAPES.get(device, _LARGE)
    x = torch.ones(rows, inputs, dtype=_DTYPES[precision], device=device)
    layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=x.dtype, device=device)
    kernel = prepacked.Linear(layer) if device == "cpu" and prepacked.works(x.dtype) else layer
    best = float("inf")
    for _ in range(_ROUNDS):
        synchronize(x.device)
        started = time.perf_counter()
        kernel(x)
        synchronize(x.device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * rows * inputs * outputs / best
