"""The parts of benchmarks/gpu.py that measure whole encoders: end-to-end and profile."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_data import Piece, make_model, make_pieces
from benchmarks.gpu_engines import (
    Engine,
    Model,
    disentangled_flash,
    flashdeberta,
    nemo_style,
    no_fallback,
    sentence_transformers,
    tidemill,
    transformers_padded,
)
from operators.aggregation import Floats
from operators.flops import flops
from operators.precision import resolve_precision

Rows = list[dict[str, Any]]
Result = tuple[dict[str, Any], Rows]
Making = Callable[[], Engine]

_TOKENS = 500_000
"""Of a piece: what a worker encodes in one call."""
_PIECES = 4
OUR_KERNELS = frozenset({"_kernel"})
"""Names of the Triton kernels in operators/attention: the whole of what a profile calls them."""

_GROUPS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),  # some of them are made of cutlass, too
    "matrix products": ("gemm", "gemv", "cutlass", "nvjet", "splitkreduce", "::mm", "::bmm", "::addmm", "::linear", "_linear_"),
    "copies": ("memcpy", "memset", "copy"),
}
"""Group of kernels -> what their names hold; the first that fits. All others are elementwise work, norms and sums."""


def prepare(options: argparse.Namespace, folder: Path, name: str) -> Model:
    """The model in `folder`, in the precision that a job would choose."""
    config = make_model(folder, name, tiny=options.tiny)
    precision, _ = resolve_precision("auto", options.device, config["model_type"])
    return Model(folder, config, options.device, precision)


def makings(model: Model, *, tiny: bool) -> dict[str, Making]:
    """All engines that there are for the model."""
    family = model.config["model_type"]
    small, large = (256, 512) if tiny else (4096, 32_768)
    ours: dict[str, Making] = {f"Tidemill, {n} tokens a pack": partial(tidemill, model, n) for n in _doubled(small, 2 * large)}
    plain = {"backend": "eager"} if tiny else {}
    ours[f"Tidemill, {large}, compiled"] = partial(tidemill, model, large, plain)
    for budget in (small, large):
        graphs = plain or {"mode": "reduce-overhead"}
        ours[f"Tidemill, {budget}, compiled with CUDA graphs"] = partial(tidemill, model, budget, graphs)
    batches = (8,) if tiny else (32, 128, 512)
    theirs: dict[str, Making] = {f"transformers, sorted, batch {n}": partial(transformers_padded, model, n) for n in batches}
    theirs |= {f"sentence-transformers, batch {n}": partial(sentence_transformers, model, n) for n in batches}
    theirs["NeMo-style, batch 256"] = partial(nemo_style, model, 256)
    if family == "deberta-v2":
        theirs |= {f"flashdeberta, sorted, batch {n}": partial(flashdeberta, model, n) for n in batches}
        theirs["disentangled-flash, packs of 32768"] = partial(disentangled_flash, model, 32_768)
    return theirs | ours


def end_to_end(options: argparse.Namespace, folder: Path) -> Result:
    """Useful tokens and documents a second of each engine, in interleaved rounds; padding counts as nothing."""
    model = prepare(options, folder, options.model)
    pieces = make_pieces(options.dataset, _PIECES, 1200 if options.tiny else _TOKENS, tiny=options.tiny)
    reference = tidemill(Model(folder, model.config, options.device, "fp32"), 8192)(pieces[0])
    engines: dict[str, Engine] = {}
    rows: dict[str, dict[str, Any]] = {name: {"engine": name} for name in makings(model, tiny=options.tiny)}
    for name, making in makings(model, tiny=options.tiny).items():
        try:
            engines[name] = making()
            rows[name] |= _first(engines[name], pieces[0], reference, options.device)
        except Exception as error:  # noqa: BLE001 -- a library that is missing or fails is a row that says so
            engines.pop(name, None)
            rows[name]["skipped"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            _empty(options.device)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for round_ in range(options.rounds):
        for name, engine in engines.items():
            rates[name].append(_rate(engine, pieces[round_ % 2 :], options.seconds, options.device))
    every = np.concatenate([piece.lengths for piece in pieces])
    work = (flops(model.config, every) or 0.0) / every.sum()
    ceiling = matmul_rate(model.dtype, options.device, tiny=options.tiny)
    for name, measured in rates.items():
        rate = median(measured)
        rows[name] |= {
            "tokens/s": rate,
            "documents/s": rate / every.mean(),
            "MFU": rate * work / ceiling,
            "runs": " ".join(f"{run:,.0f}" for run in measured),
        }
    return _facts(model, every, work, ceiling), sorted(rows.values(), key=lambda row: -row.get("tokens/s", 0.0))


def _facts(model: Model, lengths: Any, work: float, ceiling: float) -> dict[str, Any]:
    return {
        "precision": model.precision,
        "documents": len(lengths),
        "tokens of a document": f"mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, longest {lengths.max()}",
        "MFLOP for a token": f"{work / 1e6:.0f}",
        "matrix products, TFLOP/s": f"{ceiling / 1e12:.4g}",
    }


def _first(engine: Engine, piece: Piece, reference: Floats, device: str) -> dict[str, Any]:
    """Warm up, and see what comes out: seconds, peak memory, and how near the vectors are to float32's."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with no_fallback():
        vectors = engine(piece)
        taken = time.perf_counter() - started
        vectors = engine(piece)
    cosine = (vectors * reference).sum(1) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {"first piece, s": taken, "peak GiB": peak, "least cosine": float(cosine.min())}


def _rate(engine: Engine, pieces: list[Piece], seconds: float, device: str) -> float:
    """Useful tokens a second, of whole pieces for at least so long."""
    synchronize(device)
    started, tokens, at = time.perf_counter(), 0, 0
    while time.perf_counter() - started < seconds or not tokens:
        piece = pieces[at % len(pieces)]
        engine(piece)
        tokens, at = tokens + int(piece.lengths.sum()), at + 1
    synchronize(device)
    return tokens / (time.perf_counter() - started)


def profile(options: argparse.Namespace, folder: Path) -> Result:
    """Where the device's time goes while Tidemill encodes one piece, and how much of the time it is busy."""
    model = prepare(options, folder, options.model)
    piece = make_pieces(options.dataset, 1, 1200 if options.tiny else _TOKENS, tiny=options.tiny)[0]
    engine = tidemill(model, 512 if options.tiny else 32_768)
    engine(piece)
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if options.device == "cuda" else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        synchronize(options.device)
        started = time.perf_counter()
        engine(piece)
        synchronize(options.device)
        wall = time.perf_counter() - started
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages():
        on_device = event.device_type == torch._C._autograd.DeviceType.CUDA
        if on_device == (options.device == "cuda"):
            kernels[event.key] += (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6
    groups: Counter[str] = Counter()
    for kernel, seconds in kernels.items():
        groups[_group(kernel)] += seconds
    rows = [{"what": group, "ms": s * 1e3, "share": s / wall} for group, s in groups.most_common()]
    rows += [{"what": f"`{kernel[:70]}`", "ms": s * 1e3, "share": s / wall} for kernel, s in kernels.most_common(15)]
    return {"wall, ms": f"{wall * 1e3:.4g}", "device busy": f"{sum(kernels.values()) / wall:.1%}"}, rows


def _group(kernel: str) -> str:
    if kernel in OUR_KERNELS:
        return "attention"
    name = kernel.lower()
    if name.startswith("triton_"):  # torch.compile's: tem is a matrix product, all others are named after what they fuse
        return "matrix products" if name.startswith("triton_tem_") else "all else"
    return next((group for group, words in _GROUPS.items() if any(w in name for w in words)), "all else")


def matmul_rate(dtype: torch.dtype, device: str, *, tiny: bool = False) -> float:
    """FLOP/s of a large product of random matrices: the ceiling that encoders are compared with."""
    size = 128 if tiny else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def seconds_of(work: Callable[[], Any], device: str, times: int = 20) -> float:
    """Median of `times` runs after three to warm up."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        if device == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            work()
            last.record()
            last.synchronize()
            taken.append(float(first.elapsed_time(last)) / 1e3)
        else:
            work()
            taken.append(time.perf_counter() - started)
    return median(taken)


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def _empty(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def _doubled(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]
