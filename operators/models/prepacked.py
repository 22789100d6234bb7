"""Linear layers of a model on a CPU, with their weights in oneDNN's own layout and an exact GELU computed on the way out.

torch hands float32 matrices to MKL, which leaves a part of AMD's vector units idle; oneDNN does not. The operators are private
to torch, so they are tried first, and where they are missing or wrong the layers stay as they are.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 2048
"""Rows that the layout is made for; any number works."""

_CACHES = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Kernels that torch, in each thread, and oneDNN keep for shapes that they met: 1,024 by default, each with memory to work in.
Packs have ever other shapes, so that a worker would grow long before the first is dropped; 16 are too few to be fast."""

_GELU_AFTER = (("dense", "intermediate_act_fn"), ("lin1", "activation"))
"""Names of a linear layer and of the activation behind it, in the modules of transformers."""


class Linear(nn.Module):
    """What `linear` computes, or gelu(linear); its weights are taken over, not kept twice."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._then = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] of [..., in]"""
        name, how = self._then
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], how)
        return result


def prepack(model: nn.Module) -> None:
    """Swap all linear layers inside of `model`, which is on a CPU and in evaluation mode; nothing where that does not work."""
    from transformers.activations import GELUActivation  # takes a second, which a driver that only asks `works` need not wait

    if not works(next(model.parameters()).dtype):
        return
    for module in list(model.modules()):
        for linear, activation in _GELU_AFTER:
            if type(getattr(module, linear, None)) is nn.Linear and type(getattr(module, activation, None)) is GELUActivation:
                setattr(module, linear, Linear(getattr(module, linear), gelu=True))
                setattr(module, activation, nn.Identity())
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Linear(child))


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operators on this CPU, and they are right. Asking bounds the caches of kernels."""
    for name, capacity in _CACHES.items():
        os.environ.setdefault(name, capacity)  # read when the first kernel is made, which is here
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, linear = torch.linspace(-1, 1, 5 * 48).view(5, 48).to(dtype), nn.Linear(48, 32).to(dtype)
    try:
        with torch.inference_mode():
            expected = F.linear(x, linear.weight, linear.bias)
            pairs = ((Linear(linear)(x), expected), (Linear(linear, gelu=True)(x), F.gelu(expected)))
    except (AttributeError, RuntimeError):
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(found.float(), right.float(), rtol=0, atol=tolerance) for found, right in pairs)
