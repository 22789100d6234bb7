"""Encoders by OpenVINO on CPUs: fp32, bf16 where the CPU has it, and int8 after `tidemill export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from operators.encoders import _exported
from operators.encoders._exported import Exported, Inputs, Library, Run
from operators.exports import Exports
from operators.models.layout import Layout
from operators.models.ptq import quantize, without_telemetry

_GRAPH = "openvino_model.xml"
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Of what is not int8; in float32 int8 gives the same on every CPU."""


def load(layout: Layout, device: str, precision: str, *, exports: Exports | None = None) -> Exported:
    """As `operators.encoders._exported.load`; ValueError also where the CPU has no bf16."""
    return _exported.load(LIBRARY, layout, device, precision, exports)


def why_padded(layout: Layout) -> str:
    """Always: its graphs take rectangles."""
    return f"{layout.model_type} runs padded: graphs of backend openvino take rectangles"


def _openvino() -> Any:
    """The library, imported where it is needed."""
    without_telemetry()
    import openvino

    return openvino


def _write(traced: Path, folder: Path) -> None:
    openvino = _openvino()
    openvino.save_model(openvino.Core().read_model(str(traced)), str(folder / _GRAPH), compress_to_fp16=False)


def _open(folder: Path, precision: str, threads: int) -> Run:
    openvino = _openvino()
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this CPU computes no bf16, which backend openvino was asked for; set runtime.precision to fp32")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # the workers of a node would all take its first cores
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    model = core.compile_model(str(folder / _GRAPH), "CPU", settings)
    names = [value.get_any_name() for value in model.inputs]
    request = model.create_infer_request()
    return lambda inputs: request.infer({name: inputs[name] for name in names}, share_inputs=True, share_outputs=True)[0]


def _quantize(source: Path, target: Path, samples: Sequence[Inputs]) -> None:
    openvino = _openvino()
    graph = openvino.Core().read_model(str(source / _GRAPH))
    names = [value.get_any_name() for value in graph.inputs]
    openvino.save_model(quantize(graph, names, samples), str(target / _GRAPH), compress_to_fp16=False)


LIBRARY = Library("openvino", ("openvino",), ("onnx", "nncf"), ("fp32", "bf16", "int8"), _write, _open, _quantize)
