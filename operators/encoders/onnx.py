"""Encoders by onnxruntime on CPUs: fp32, and int8 after `tidemill export`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from operators.encoders import _exported
from operators.encoders._exported import Exported, Inputs, Library, Run
from operators.exports import Exports
from operators.models.layout import Layout
from operators.models.ptq import quantize

_GRAPH = "model.onnx"


def load(layout: Layout, device: str, precision: str, *, exports: Exports | None = None) -> Exported:
    """As `operators.encoders._exported.load`."""
    return _exported.load(LIBRARY, layout, device, precision, exports)


def why_padded(layout: Layout) -> str:
    """Always: its graphs take rectangles."""
    return f"{layout.model_type} runs padded: graphs of backend onnx take rectangles"


def _write(traced: Path, folder: Path) -> None:
    # With it the files of its weights, which torch writes beside a graph that is too large for one file.
    shutil.copytree(traced.parent, folder, dirs_exist_ok=True)


def _open(folder: Path, precision: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / _GRAPH), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})[0]


def _quantize(source: Path, target: Path, samples: Sequence[Inputs]) -> None:
    import onnx

    graph = onnx.load(str(source / _GRAPH))
    names = [value.name for value in graph.graph.input]
    onnx.save(quantize(graph, names, samples), str(target / _GRAPH))


LIBRARY = Library("onnx", ("onnxruntime",), ("onnx", "nncf"), ("fp32", "int8"), _write, _open, _quantize)
