"""What is OpenVINO's own: bf16 where the CPU has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.encoders import openvino as backend
from operators.encoders import torch as reference
from operators.models.layout import read_layout
from operators.packing import Pack
from tests.tiny import tiny_encoder

ROOT = Path(__file__).resolve().parents[3]
HAS_BF16 = "BF16" in backend._openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_bf16_or_a_refusal(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path))
    assert backend.why_padded(layout) == "bert runs padded: graphs of backend openvino take rectangles"
    if not HAS_BF16:
        with pytest.raises(ValueError, match="this CPU computes no bf16"):
            backend.load(layout, "cpu", "bf16")
        return
    pack = Pack(np.arange(5, 25, dtype=np.int32), np.array([0, 14, 20], np.int32), np.arange(2))
    rounded = backend.load(layout, "cpu", "bf16").encode(pack)
    exact = reference.load(layout, "cpu", "fp32").encode(pack)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() > 1e-4
    assert torch.nn.functional.cosine_similarity(rounded, exact).min() > 0.99


def test_nothing_is_reported_to_the_makers(tmp_path: Path) -> None:
    """The library's telemetry keeps its state in the home directory."""
    code = "from operators.encoders.openvino import _openvino; _openvino().Core(); import nncf"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, timeout=120)
    assert not (tmp_path / "intel").exists()
