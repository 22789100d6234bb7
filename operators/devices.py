"""Which device the encoders run on, in which precision, and why. Creates no device context: a driver may ask too."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import torch

KINDS = ("npu", "cuda", "cpu")
"""In order of preference."""

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""How devices say it; not all of them raise torch.OutOfMemoryError."""

_DEVICE_LOST = (
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid program counter",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc",
    "aicore exception",
    "aicore timeout",
)
"""Errors after which every further call on the device fails as well."""

_WORTH_COMPILING = 20_000
"""Packs that pay for compiling: by estimate, about a minute against 3 ms less for each pack of 32,768 tokens."""

_TOKEN_BUDGETS = {"npu": 32_768, "cuda": 32_768, "cpu": 1_024}


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
    # device_count asks NVML and makes no context, unlike the calls that name or initialise a device.
    count = torch.cuda.device_count()
    seen = f"torch {torch.__version__} sees {'it' if count else 'no device'}"
    return {"npu": _npus(), "cuda": (count, seen)}


def _npus() -> tuple[int, str]:
    """Count and evidence of NPUs. A torch_npu that cannot be loaded (no driver, no CANN, a torch for CUDA) is none."""
    if importlib.util.find_spec("torch_npu") is None:
        return 0, "torch_npu is not installed"
    try:
        importlib.import_module("torch_npu")  # registers torch.npu
        count = int(torch.get_device_module("npu").device_count())
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return 0, f"torch_npu cannot be loaded: {type(error).__name__}: {reason}"
    return count, f"torch_npu sees {'it' if count else 'no device'}"


def resolve_compile(asked: str, backend: str, kind: str, packs: float) -> bool:
    """Whether encoders compile their layers. `asked`: auto, on or off; `packs`: how many each of them will encode, by estimate.

    auto: with torch on CUDA, where the work is long enough to pay for it. ValueError where `asked` cannot be had."""
    can = backend == "torch" and kind == "cuda"
    if asked == "on" and not can:
        raise ValueError(f"backend torch compiles, on cuda; this job has backend {backend} on {kind}: choose auto or off")
    return can and (asked == "on" or (asked == "auto" and packs > _WORTH_COMPILING))


def default_token_budget(kind: str) -> int:
    """Tokens in one pack: on CPUs as many as stay in the caches, on accelerators enough to fill them."""
    return _TOKEN_BUDGETS[kind]


def set_threads(count: int) -> None:
    """Let torch use `count` threads in this process, so that workers on one machine do not fight for its cores."""
    torch.set_num_threads(count)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device, or the host, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether `error` says that this process cannot use its device any more, as after an illegal access of its memory."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return any(words in str(error).lower() for words in _DEVICE_LOST)


def free_memory(device: torch.device) -> int | None:
    """Bytes of the device that new tensors can take, those included that torch keeps for reuse; None on a CPU."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def start_peak(device: torch.device) -> int:
    """Bytes that tensors take now; `peak_memory` counts from here. Accelerators only."""
    module = torch.get_device_module(device)
    module.reset_peak_memory_stats(device)
    return int(module.memory_allocated(device))


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took since `start_peak`. Accelerators only."""
    return int(torch.get_device_module(device).max_memory_allocated(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device is through with its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for reuse."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
