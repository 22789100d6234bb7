"""The parts of benchmarks/gpu.py beside whole encoders: environment, correctness, DeBERTa's attention, out of memory."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.gpu_data import MODELS, make_pieces
from benchmarks.gpu_engines import (
    DTYPES,
    Engine,
    disentangled_flash,
    flashdeberta,
    make_encode,
    no_fallback,
    tidemill,
    transformers_padded,
    vectors_of,
)
from benchmarks.gpu_speed import Result, Rows, matmul_rate, prepare, seconds_of
from operators.aggregation import Floats
from operators.attention import disentangled, varlen
from operators.attention.disentangled import Positions
from operators.attention.varlen import Windows
from operators.packing import Pack
from operators.transfer import to_device

_LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "sentence-transformers",
    "flashdeberta",
    "disentangled-flash",
    "numpy",
    "pyarrow",
)
_SLOTS = 512
"""Positions that DeBERTa-v3 knows: those that its FLOPs are counted by."""


def versions(device: str) -> dict[str, str]:
    """Libraries, Python, and the device's name."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": name, "software": f"Python {platform.python_version()}, " + ", ".join(map(_version, _LIBRARIES))}


def _version(library: str) -> str:
    try:
        return f"{library} {importlib.metadata.version(library)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {library}"


def environment(options: argparse.Namespace, folder: Path) -> Result:
    """What the device can do at best: matrix products, copies within its memory, copies from the host."""
    device, tiny = options.device, options.tiny
    figures = {
        f"matrix products, {name}, TFLOP/s": matmul_rate(dtype, device, tiny=tiny) / 1e12 for name, dtype in DTYPES.items()
    }
    source = torch.zeros(2**16 if tiny else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    figures["copies, GB/s read and written"] = 2 * source.nbytes / seconds_of(partial(target.copy_, source), device) / 1e9
    ids = np.arange(32_768, dtype=np.int32)
    figures["32,768 ids from the host, us"] = 1e6 * seconds_of(partial(to_device, ids, torch.device(device)), device)
    facts = {}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["memory, GiB"] = f"{properties.total_memory / 2**30:.0f}"
        facts["compute capability"] = f"{properties.major}.{properties.minor}"
    return facts, [{"what": what, "figure": figure} for what, figure in figures.items()]


def correctness(options: argparse.Namespace, folder: Path) -> Result:
    """How far each way's vectors are from transformers' in float32, as a share of their length; memory is poisoned before.

    Ours should not be further than transformers' own in the same precision, beyond chance."""
    rows: Rows = []
    for name in MODELS:
        model = prepare(options, folder / name, name)
        piece = make_pieces("A", 1, 1200 if options.tiny else 40_000, tiny=options.tiny)[0]
        exact = transformers_padded(replace(model, precision="fp32"), 16)(piece)
        budget = 256 if options.tiny else 4096
        graph = {"backend": "eager"} if options.tiny else {}
        ways: dict[str, Callable[[], Engine]] = {
            "transformers": partial(transformers_padded, model, 16),
            "Tidemill": partial(tidemill, model, budget),
            "Tidemill, compiled": partial(tidemill, model, budget, graph),
        }
        if name.startswith("deberta"):
            ways["flashdeberta"] = partial(flashdeberta, model, 16)
            ways["disentangled-flash"] = partial(disentangled_flash, model, budget)
        for way, making in ways.items():
            found = _error(making, piece, exact, options.device)
            rows.append({"model": name, "precision": model.precision, "way": way, **found})
    return {}, rows


def _error(making: Callable[[], Engine], piece: Any, exact: Floats, device: str) -> dict[str, Any]:
    try:
        engine = making()
        _poison(device)
        with no_fallback():
            vectors = [engine(piece) for _ in range(3)][-1]  # often enough for a size to be compiled
    except Exception as error:  # noqa: BLE001 -- a library that is missing or fails is a row that says so
        return {"skipped": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
    apart = np.linalg.norm(vectors - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return {"mean error": float(apart.mean()), "largest error": float(apart.max())}


def _poison(device: str) -> None:
    """Fill memory that is about to be used with NaN, so that what a kernel leaves out shows."""
    if device == "cuda":
        torch.cuda.empty_cache()
        filled = [torch.full((2**28,), torch.nan, device=device) for _ in range(4)]
        del filled


def deberta_attention(options: argparse.Namespace, folder: Path) -> Result:
    """DeBERTa's attention alone, without projections: windows of one length, the heads of the base size.

    `plain`: attention without positions, which no way can beat."""
    device = options.device
    tokens, heads, size = (128, 2, 16) if options.tiny else (16_384, 12, 64)
    dtype = torch.float32 if device == "cpu" else torch.float16
    rows: Rows = []
    for length in (16, 64) if options.tiny else (64, 128, 256, 512, 1024, 4096):
        bounds = np.arange(0, tokens + 1, length, dtype=np.int32)
        windows = Windows.of(Pack(np.zeros(tokens, np.int32), bounds, np.arange(len(bounds) - 1)), torch.device(device))
        q, k, v = (torch.randn(tokens, heads, size, device=device).to(dtype) for _ in range(3))
        tables = (torch.randn(heads, 2 * length - 1, size, device=device).to(dtype) / 8 for _ in range(2))
        positions = Positions(*tables)
        work = 4 * tokens * heads * size * (length + min(2 * length - 1, _SLOTS))
        exact = disentangled.attend_strided((q, k, v), windows, positions, 0.1)
        ways: dict[str, Callable[[], Tensor]] = {
            "strided": partial(disentangled.attend_strided, (q, k, v), windows, positions, 0.1),
            "as a job runs it": partial(disentangled.attend, (q, k, v), windows, positions, 0.1),
            "plain": partial(varlen.attend, (q, k, v), windows, 0.1),
        }
        for way, attend in ways.items():
            seconds = seconds_of(attend, device)
            apart = None if way == "plain" else float((attend() - exact).norm() / exact.norm())
            rows.append({"length": length, "way": way, "us": seconds * 1e6, "TFLOP/s": work / seconds / 1e12, "apart": apart})
    return {"tokens": tokens, "heads": heads, "components": size, "type": str(dtype)}, rows


def out_of_memory(options: argparse.Namespace, folder: Path) -> Result:
    """Encode with room for a fraction of the packs asked for: no document may be lost, nor change.

    First with memory that torch is not allowed to have, which shows only when it runs out; then without that limit."""
    rows: Rows = []
    for name in MODELS:
        model = prepare(options, folder / name, name)
        piece = make_pieces("A", 1, 1200 if options.tiny else 500_000, tiny=options.tiny)[0]
        exact = vectors_of(make_encode(model, 256 if options.tiny else 4096), piece)
        encode = make_encode(model, 2048 if options.tiny else 131_072)
        for limited in (True, False):
            with _little_memory(options.device if limited else "cpu"):
                encoded = encode(piece.inputs)
            ran_out, apart = encoded.statistics["out_of_memory"], _change(encoded.values["vector"], exact)
            found = {"failed": len(encoded.failed), "ran out": ran_out, "budget after": encode.budget, "largest change": apart}
            rows.append({"model": name, "limited": limited and options.device == "cuda", **found})
    return {}, rows


def _change(column: pa.Array, exact: Floats) -> float | None:
    """How far vectors are from the exact ones at most, as a share of the largest number; None where all are lost."""
    there = column.is_valid().to_numpy(zero_copy_only=False)
    if not there.any():
        return None
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(int(there.sum()), -1)  # which leaves nulls out
    return float(np.abs(vectors - exact[there]).max() / np.abs(exact).max())


@contextmanager
def _little_memory(device: str) -> Iterator[None]:
    """torch may have 1 GiB more than it has; without effect on a CPU."""
    if device != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
