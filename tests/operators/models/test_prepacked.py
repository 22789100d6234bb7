"""Prepacked layers compute what torch's do, and models with them what they did before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel
from transformers.activations import GELUActivation

from operators.models import prepacked
from tests.tiny import MODEL_TYPES, tiny_encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 48), (700, 48), (2, 7, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_like_torchs(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=bias).to(dtype)
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        found, expected = prepacked.Linear(linear)(x), linear(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_like_before(model_type: str, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_encoder(tmp_path, model_type=model_type)).eval()
    ids = torch.tensor([[5, 7, 8, 9, 6]])
    with torch.inference_mode():
        before = model(ids).last_hidden_state
        prepacked.prepack(model)
        after = model(ids).last_hidden_state
    assert not any(type(m) is nn.Linear for m in model.encoder.modules()) if hasattr(model, "encoder") else True
    assert any(isinstance(m, prepacked.Linear) for m in model.modules())
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_without_the_operators_nothing_is_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModel.from_pretrained(tiny_encoder(tmp_path)).eval()
    monkeypatch.setattr(prepacked, "works", lambda dtype: False)
    prepacked.prepack(model)
    assert not any(isinstance(m, prepacked.Linear) for m in model.modules())


@pytest.mark.parametrize(("model_type", "fused"), [("bert", 2), ("distilbert", 2), ("deberta-v2", 2), ("modernbert", 0)])
def test_the_exact_gelu_is_computed_with_the_layer_before_it(model_type: str, fused: int, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_encoder(tmp_path, model_type=model_type)).eval()
    before = sum(type(module) is GELUActivation for module in model.modules())
    prepacked.prepack(model)
    assert before - sum(type(module) is GELUActivation for module in model.modules()) == fused


def test_operators_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked.Linear, "forward", lambda self, x: torch.zeros(*x.shape[:-1], 32, dtype=x.dtype))
    prepacked.works.cache_clear()
    try:
        assert not prepacked.works(torch.float32)
    finally:
        monkeypatch.undo()
        prepacked.works.cache_clear()
    assert prepacked.works(torch.float32)


_MANY_SHAPES = """
import psutil
import torch
from operators.models import prepacked

prepacked.works(torch.float32)
layer = prepacked.Linear(torch.nn.Linear(384, 1536))
x = torch.zeros(900, 384)
with torch.inference_mode():
    layer(x)
    before = psutil.Process().memory_info().rss
    for rows in range(300, 900, 2):
        layer(x[:rows])
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def test_memory_does_not_grow_with_every_new_shape() -> None:
    grown = subprocess.run([sys.executable, "-c", _MANY_SHAPES], capture_output=True, text=True, check=True).stdout
    assert float(grown) < 700, "MiB; about 450 with bounded caches, 1,050 without"
