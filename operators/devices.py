"""Which device the encoders run on, in which precision, and why. Creates no device context: a driver may ask too."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import torch

KINDS = ("npu", "cuda", "cpu")
"""In order of preference."""

_TOKEN_BUDGETS = {"npu": 32_768, "cuda": 32_768, "cpu": 2_048}


@dataclass(frozen=True)
class Device:
    """The kind chosen, how many of it there are, and the reason in words."""

    kind: str
    count: int
    reason: str


def choose(asked: str, offered: Mapping[str, int] | None = None) -> Device:
    """The device for `asked` (auto, npu, cuda or cpu). `offered`: devices of a cluster by kind; None looks at this machine.

    ValueError where the one asked for is absent."""
    if asked not in ("auto", *KINDS):
        raise ValueError(f"device {asked!r} is unknown; there are: auto, {', '.join(KINDS)}")
    found = _here() if offered is None else {kind: (offered.get(kind, 0), "by the cluster") for kind in ("npu", "cuda")}
    if asked == "cpu":
        return Device("cpu", 1, "asked for")
    for kind in ("npu", "cuda") if asked == "auto" else (asked,):
        count, evidence = found[kind]
        if count:
            why = "asked for" if asked == kind else "the first of npu, cuda, cpu that is there"
            return Device(kind, count, f"{why}; {count} x {kind}: {evidence}")
    missing = "; ".join(f"no {kind}: {found[kind][1] if offered is None else 'the cluster offers none'}" for kind in found)
    if asked != "auto":
        raise ValueError(f"device {asked!r} was asked for, but it is not there ({missing}); choose auto or cpu")
    return Device("cpu", 1, missing)


def _here() -> dict[str, tuple[int, str]]:
    """Count and evidence of each accelerator on this machine."""
    if importlib.util.find_spec("torch_npu") is None:
        npu = (0, "torch_npu is not installed")
    else:
        importlib.import_module("torch_npu")  # registers torch.npu
        count = int(torch.get_device_module("npu").device_count())
        npu = (count, f"torch_npu sees {'it' if count else 'no device'}")
    # device_count asks NVML and makes no context, unlike the calls that name or initialise a device.
    count = torch.cuda.device_count()
    seen = f"torch {torch.__version__} sees {'it' if count else 'no device'}"
    return {"npu": npu, "cuda": (count, seen)}


def resolve_precision(asked: str, kind: str, model_type: str) -> tuple[str, str]:
    """Precision of the computation (fp32, bf16 or fp16) and the reason, on device `kind` for a model of `model_type`.

    ValueError where `asked` cannot be had."""
    if asked == "int8":
        raise ValueError("precision int8 needs a backend that quantizes, and torch is not one; choose auto, fp32, bf16 or fp16")
    if asked != "auto":
        return asked, "asked for"
    if kind == "cpu":
        return "fp32", "exact, and the default on a CPU"
    if model_type.startswith("deberta"):
        return "fp16", f"{model_type} loses less in fp16 than in bf16"
    return "bf16", f"the default on {kind}"


def default_token_budget(kind: str) -> int:
    """Tokens in one pack: on CPUs as many as stay in the caches, on accelerators enough to fill them."""
    return _TOKEN_BUDGETS[kind]


def set_threads(count: int) -> None:
    """Let torch use `count` threads in this process, so that workers on one machine do not fight for its cores."""
    torch.set_num_threads(count)
