"""Whole forward passes on a made-up device npu:0, in a process of their own: prints each call of CANN's kernel as JSON.

Tensors there have shapes, types and devices but no values, so reading one raises; copies to the host are refused here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from operators import devices
from operators.attention import npu
from operators.models.deberta import Deberta
from operators.models.packed import Packed
from operators.packing import Pack
from tests.operators.attention.cann import Call, Kernel
from tests.operators.attention.npu_models import LENGTHS, MODELS, make, pack

DEVICE = "npu:0"


class Backend(_DummyBackendModule):
    """What torch asks of the module torch.npu."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """For torch.autocast."""
        return [torch.bfloat16, torch.float16]


class NothingComesBack(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that make a tensor of the CPU from one of the device: each would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, Tensor)]
        made = result if isinstance(result, Tensor) else None
        if made is not None and made.device.type == "cpu" and any(x.device.type == "npu" for x in given):
            raise AssertionError(f"{func} waits for the device")
        return result


def place(model: Any, dtype: torch.dtype) -> Any:
    """Give a model of the device meta parameters and buffers on the NPU; `to` cannot replace fake ones."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            made = torch.empty(parameter.shape, dtype=dtype, device=DEVICE)
            setattr(module, name, torch.nn.Parameter(made, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE))
    return model


def calls_of(name: str, dtype: torch.dtype, windows: Pack) -> list[Call]:
    """The calls of one forward pass of the model of this name."""
    kernel = Kernel(compute=False)
    sys.modules["torch_npu"] = kernel  # type: ignore[assignment]
    with torch.device("meta"):
        model = make(name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        place(model, dtype)
        forward: Callable[[Pack], Tensor] = (Deberta if "DeBERTa" in name else Packed)(model)
        with NothingComesBack():  # type: ignore[no-untyped-call]
            hidden = forward(windows)
    assert (str(hidden.device), hidden.dtype) == (DEVICE, dtype)
    assert hidden.shape == (len(windows.input_ids), model.config.hidden_size)
    npu._compressed_mask.cache_clear()  # what is kept belongs to this pass's FakeTensorMode
    npu._unseen.cache_clear()
    return kernel.calls


def described(call: Call) -> dict[str, Any]:
    """What of a call JSON can hold."""
    shapes = {name: list(x.shape) for name, x in vars(call).items() if isinstance(x, Tensor)}
    plain = {name: x for name, x in vars(call).items() if not isinstance(x, Tensor)}
    return plain | shapes | {"dtype": str(call.query.dtype), "device": str(call.query.device)}


def refusals() -> list[str]:
    """What happens to code that reads the device: the reason to trust that the passes above do not."""
    failed = []
    with FakeTensorMode(), NothingComesBack():  # type: ignore[no-untyped-call]
        x = torch.empty(3, device=DEVICE)
        for name, read in {"cpu": lambda: x.cpu(), "item": lambda: x.sum().item(), "tolist": lambda: x.tolist()}.items():
            try:
                read()  # type: ignore[no-untyped-call]
            except Exception:  # noqa: BLE001 -- each way of reading has its own
                failed.append(name)
    return failed


def main() -> None:
    """Everything, once."""
    _setup_privateuseone_for_python_backend("npu", Backend())
    windows = pack(LENGTHS)
    calls: dict[str, Any] = {}
    for name in MODELS:
        dtype = torch.float16 if "DeBERTa" in name else torch.bfloat16
        calls[name] = [described(call) for call in calls_of(name, dtype, windows)]
    npu.BAND_MODE = True
    calls["ModernBERT, band mode"] = [described(call) for call in calls_of("ModernBERT", torch.bfloat16, windows)]
    many = pack([1] * 2_500)
    calls["BERT, many windows"] = [described(call) for call in calls_of("BERT", torch.bfloat16, many)]
    chosen = [devices.choose("auto").kind, str(torch.accelerator.current_accelerator())]
    print(json.dumps({"chosen": chosen, "refused": refusals(), "calls": calls}))


if __name__ == "__main__":
    main()
