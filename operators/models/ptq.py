"""Post-training quantization to int8 by nncf, of graphs of OpenVINO and ONNX alike."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from operators.segmentation import Ints


def quantize(graph: Any, names: Sequence[str], samples: Sequence[Mapping[str, Ints]]) -> Any:
    """The graph (openvino.Model or onnx.ModelProto) with int8 weights and activations, calibrated on all `samples`.

    `names`: the graph's inputs, which may be fewer than a sample has: a model without token types ignores them.

    nncf's preset for transformers keeps what attention needs in float, and smooths outliers of activations into the weights,
    which onnxruntime's own static quantization does not."""
    without_telemetry()
    import nncf

    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset(list(samples), lambda sample: {name: sample[name] for name in names})
    return nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))


def without_telemetry() -> None:
    """Before OpenVINO or nncf is imported: both report each import and use to their makers, unasked, by a package that they run
    without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
