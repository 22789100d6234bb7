"""Compile the fused kernel for an H100 or H200, as real calls would have it, without one. Prints a line of JSON for each variant.

A program of its own, for Triton is either a compiler or, as in the tests around it, an interpreter.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from operators.attention import triton_disentangled as fused
from operators.attention.disentangled import Positions
from operators.attention.varlen import Windows
from operators.packing import Pack

HEADS = 2


class Hopper:
    """What Triton asks of a device before it launches anything."""

    def get_current_target(self) -> GPUTarget:
        """An H100 or H200."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0


def main() -> None:
    """All variants that packs of many lengths need, in both precisions and for all sizes of heads and sets of terms."""
    compiled: dict[int, Any] = {}
    run = fused._kernel.run

    def compile_only(*arguments: Any, **options: Any) -> None:
        kernel = run(*arguments, **(options | {"warmup": True}))
        compiled.setdefault(id(kernel), (kernel, {name: options[name] for name in ("D", "BLOCK", "C2P", "P2C")}))

    driver.set_active(Hopper())
    fused._kernel.run = compile_only
    attend("c2p p2c", 64, torch.float16)
    attend("c2p p2c", 64, torch.bfloat16)
    attend("c2p", 64, torch.float16)
    attend("p2c", 64, torch.float16)
    attend("", 64, torch.float16)
    for size in (32, 128):
        attend("c2p p2c", size, torch.float16)
    for kernel, options in compiled.values():
        ptx = kernel.asm["ptx"]
        products = len(re.findall(r"\bwgmma\.mma_async|\bmma\.sync", ptx))
        print(json.dumps(options | {"dtype": "bf16" if "bf16" in ptx else "fp16", "products": products} | resources(ptx)))


def attend(terms: str, size: int, dtype: torch.dtype) -> None:
    """Call the kernel for packs whose windows, starts, widths and addresses are round numbers or not."""
    for lengths in ([512, 300, 100, 64, 33, 16, 1], [511, 1], [32, 32, 7], [16] * 3, [1]):
        ends = np.cumsum([0, *lengths]).astype(np.int32)
        pack = Pack(input_ids=np.zeros(ends[-1], np.int32), cu_seqlens=ends, segments=np.arange(len(lengths)))
        q, k, v = torch.zeros(int(ends[-1]), 3, HEADS, size, dtype=dtype).unbind(1)
        table = torch.zeros(HEADS, 2 * (max(lengths) + 64) - 1, size, dtype=dtype)
        positions = Positions(table if "c2p" in terms else None, table if "p2c" in terms else None)
        windows = Windows.of(pack, torch.device("cpu"))
        fused.attend((q, k, v), windows, positions, 0.1)
        elsewhere = torch.cat([windows.cu_seqlens[:1], windows.cu_seqlens])[1:]
        fused.attend((q, k, v), replace(windows, cu_seqlens=elsewhere), positions, 0.1)


@functools.cache
def assembler() -> str:
    """That of Triton's own wheel."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas")


def resources(ptx: str) -> dict[str, int]:
    """Registers of a thread, and bytes that are spilled for want of more."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler(), "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return {"registers": int(re.findall(r"Used (\d+) registers", report)[0]), "spilled": sum(int(n) for n in spilled)}


if __name__ == "__main__":
    main()
