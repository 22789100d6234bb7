"""What is quantized computes its linear layers in int8, for both libraries."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from operators.encoders.openvino import _openvino
from operators.models.ptq import quantize


class Layers(torch.nn.Module):
    """Two linear layers, and an input that is left unused."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.nn.ParameterList([torch.randn(16, 16, generator=generator) / 4 for _ in range(2)])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        first, second = self.weights
        return (values @ first).relu() @ second


def test_weights_of_both_kinds_of_graph_become_int8(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples: list[Any] = [{"values": rng.standard_normal((4, 16), np.float32), "unused": np.zeros(1)} for _ in range(4)]
    file = str(tmp_path / "model.onnx")
    # Of any number of rows, as exports are: of four rows fixed, OpenVINO 2026.4 computes nonsense.
    options: Any = {"input_names": ["values"], "dynamic_axes": {"values": {0: "rows"}}, "opset_version": 17, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Layers(), (torch.from_numpy(samples[0]["values"]),), file, **options)
    quantized = quantize(onnx.load(file), ["values"], samples)
    kinds = {node.op_type for node in quantized.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2 for tensor in quantized.graph.initializer) == 2

    openvino = _openvino()
    graph = quantize(openvino.Core().read_model(file), ["values"], samples)
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    assert sum(op.get_element_type() == openvino.Type.i8 and len(op.shape) == 2 for op in constants) == 2
    exact = Layers()(torch.from_numpy(samples[0]["values"])).detach().numpy()
    near = openvino.Core().compile_model(graph, "CPU")(samples[0]["values"])[0]
    assert 1e-4 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()
