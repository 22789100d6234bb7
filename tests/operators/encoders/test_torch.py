"""The encoder gives each window what transformers gives it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from operators.encoders.torch import load
from operators.models.layout import read_layout
from operators.packing import Pack
from tests.operators.conftest import MakeModel
from tests.tiny import MODEL_TYPES, tiny_encoder


def _pack(lengths: list[int], vocabulary: int) -> Pack:
    ids = np.random.default_rng(0).integers(5, vocabulary, sum(lengths)).astype(np.int32)
    return Pack(ids, np.cumsum([0, *lengths]).astype(np.int32), np.arange(len(lengths)), 0)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_like_transformers_one_window_at_a_time(model_type: str, make_model: MakeModel) -> None:
    path = make_model(model_type=model_type)
    encoder = load(read_layout(path), "cpu", "fp32")
    pack = _pack([3, 60, 1, 17], 100)
    hidden = encoder.encode(pack)
    assert hidden.shape == (81, encoder.hidden_size)
    reference = AutoModel.from_pretrained(str(path)).eval()
    for start, end in zip(pack.cu_seqlens, pack.cu_seqlens[1:], strict=False):
        with torch.inference_mode():
            alone = reference(torch.from_numpy(pack.input_ids[None, start:end].astype(np.int64))).last_hidden_state[0]
        torch.testing.assert_close(hidden[start:end], alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "mpnet", "bert"])
def test_a_window_of_all_positions_stays_inside_the_table(model_type: str, make_model: MakeModel) -> None:
    layout = read_layout(make_model(model_type=model_type, max_positions=24))
    encoder = load(layout, "cpu", "fp32")
    assert layout.max_positions == 24
    assert encoder.encode(_pack([24, 2], 100)).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        encoder.encode(_pack([25], 100))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision(precision: str, dtype: torch.dtype, make_model: MakeModel) -> None:
    layout = read_layout(make_model())
    pack = _pack([5, 9], 100)
    hidden = load(layout, "cpu", precision).encode(pack)
    assert hidden.dtype == dtype
    exact = load(layout, "cpu", "fp32").encode(pack)
    assert torch.nn.functional.cosine_similarity(hidden.float(), exact).min() > 0.99


def test_missing_and_misshapen_weights_are_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing or of another shape, the first is {name}"):
        load(layout, "cpu", "fp32")
    save_file(weights | {name: weights[name][:, :-1].contiguous()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"another shape|size mismatch|mismatched"):
        load(layout, "cpu", "fp32")


def test_an_absent_pooler_is_no_loss(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path))
    pack = _pack([4], 100)
    before = load(layout, "cpu", "fp32").encode(pack)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(load(layout, "cpu", "fp32").encode(pack), before)
