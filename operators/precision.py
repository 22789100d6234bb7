"""Which precision `auto` becomes: by what may be lost, and on CPUs by measurement."""

from __future__ import annotations

from operators.peak import measure_peak

HALF_SIMILARITY = 0.9998
"""Cosine to float32 that half precision is trusted with: MiniLM's vectors keep 0.99995 in bf16 (benchmarks/results/run.md)."""

_WORTH_IT = 1.2
"""How much faster half precision must multiply before anything is lost for it."""


def resolve_precision(asked: str, kind: str, model_type: str, similarity: float | None = None) -> tuple[str, str]:
    """Precision of the computation (fp32, bf16 or fp16) and the reason, on device `kind` for a model of `model_type`.

    `similarity`: the cosine to float32 that auto must keep; None: all of it on a CPU, `HALF_SIMILARITY` elsewhere.
    ValueError where `asked` cannot be had."""
    if asked == "int8":
        raise ValueError("precision int8 needs a backend that quantizes, and torch is not one; choose openvino or onnx")
    if asked != "auto":
        return asked, "asked for"
    if similarity is not None and similarity > HALF_SIMILARITY:
        return "fp32", f"a cosine of {similarity} is to be kept, and half precision is trusted with {HALF_SIMILARITY} only"
    if kind == "cpu":
        return ("fp32", "exact, and the default on a CPU") if similarity is None else _measured(similarity)
    if model_type.startswith("deberta"):
        return "fp16", f"{model_type} loses less in fp16 than in bf16"
    return "bf16", f"the default on {kind}"


def _measured(similarity: float) -> tuple[str, str]:
    speeds = {precision: (measure_peak("cpu", precision) or 0.0) / 1e9 for precision in ("fp32", "bf16")}
    found = f"matrix products run at {speeds['bf16']:.0f} GFLOP/s in bf16 and {speeds['fp32']:.0f} in fp32 on this CPU"
    if speeds["bf16"] < _WORTH_IT * speeds["fp32"]:
        return "fp32", f"{found}: too little for what is lost"
    return "bf16", f"{found}, and a cosine of {similarity} is enough"
