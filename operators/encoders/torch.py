"""Encoders by transformers' own modules on CPU, CUDA or NPU, packed where the family allows it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from operators.models.families import why_no_top_k, why_padded
from operators.models.layout import Layout
from operators.packing import Pack

__all__ = ["Encoder", "load", "why_no_top_k", "why_padded"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A transformers encoder, `model`, in evaluation mode. `forward` makes float [T, H] on `device` of a pack."""

    def __init__(
        self, forward: Callable[[Pack], Tensor], model: Any, hidden_size: int, device: torch.device, *, padded: bool
    ) -> None:
        self._forward = forward
        self._guard = forward
        self._model = model
        self.hidden_size = hidden_size
        self.device = device
        self.padded = padded
        self.concurrent = device.type == "cpu"

    def compile(self, **options: Any) -> None:
        """Compile the model's layers, for CUDA (`operators.models.compiled`); a padded model stays as it is.

        `options`: for torch.compile."""
        from operators.models.compiled import Compiled

        if not self.padded:
            self._forward = Compiled(self._forward, self._model, **options)

    @property
    def fell_back(self) -> bool:
        """Whether fp16 overflowed, and bf16 took its place (`operators.models.finite`)."""
        return bool(getattr(self._guard, "fell_back", False))

    @torch.inference_mode()
    def encode(self, pack: Pack) -> Tensor:
        """float [T, H] on the device, in the precision of the model."""
        return self._forward(pack)


def load(layout: Layout, device: str, precision: str, *, padded: bool = False, top_k: int | None = None) -> Encoder:
    """Load the transformer of `layout` to `device` (cpu, cuda or npu). ValueError where its weights are incomplete.

    `padded`: as the reference that the packed families are compared with, even where the family can run packed.
    `top_k`: as `operators.attention.topk`, None for full attention; ValueError where `why_no_top_k` gives a reason."""
    if top_k is not None and (reason := "the reference has full attention only" if padded else why_no_top_k(layout)):
        raise ValueError(f"no top-k attention: {reason}")
    if device == "npu":
        importlib.import_module("torch_npu")  # registers the device with torch
    from operators.models import loading  # takes seconds, which planning does not have to wait for

    padded_all_the_same = padded or why_padded(layout) is not None
    model = loading.load_model(layout, _DTYPES[precision], packed=not padded_all_the_same).to(device).eval()
    forward = loading.forward(model, padded=padded_all_the_same, top_k=top_k)
    if device == "cpu" and not padded:
        loading.prepack(model)  # after the forward was made, which may read weights
    if device != "cpu" and precision == "fp16":
        forward = loading.guard(forward, layout, device, padded=padded_all_the_same, top_k=top_k)
    return Encoder(forward, model, layout.hidden_size, torch.device(device), padded=padded_all_the_same)
