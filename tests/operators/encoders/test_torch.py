"""The encoder gives each window what transformers gives it alone, packed or padded, and reads the layouts that are out there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from operators.encoders.torch import load, why_no_top_k, why_padded
from operators.models.layout import Layout, read_layout
from operators.packing import Pack
from tests.operators.conftest import MakeModel
from tests.tiny import MODEL_TYPES, tiny_encoder


def _pack(lengths: list[int], vocabulary: int) -> Pack:
    ids = np.random.default_rng(0).integers(5, vocabulary, sum(lengths)).astype(np.int32)
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    return Pack(input_ids=ids, cu_seqlens=ends, segments=np.arange(len(lengths)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_like_transformers_one_window_at_a_time(model_type: str, padded: bool, make_model: MakeModel) -> None:
    path = make_model(model_type=model_type)
    encoder = load(read_layout(path), "cpu", "fp32", padded=padded)
    assert encoder.padded == (padded or model_type == "mpnet")
    pack = _pack([60, 17, 3, 3, 1], 100)
    hidden = encoder.encode(pack)
    assert hidden.shape == (84, encoder.hidden_size)
    reference = AutoModel.from_pretrained(str(path)).eval()
    for start, end in zip(pack.cu_seqlens, pack.cu_seqlens[1:], strict=False):
        with torch.inference_mode():
            alone = reference(torch.from_numpy(pack.input_ids[None, start:end].astype(np.int64))).last_hidden_state[0]
        torch.testing.assert_close(hidden[start:end], alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_top_k_is_the_bert_familys(model_type: str, make_model: MakeModel) -> None:
    layout = read_layout(make_model(model_type=model_type))
    if model_type in ("deberta", "deberta-v2", "modernbert", "mpnet"):
        with pytest.raises(ValueError, match=f"no top-k attention: {model_type} has full attention only"):
            load(layout, "cpu", "fp32", top_k=4)
        return
    pack = _pack([60, 17, 3], 100)
    full = load(layout, "cpu", "fp32").encode(pack)
    assert torch.equal(load(layout, "cpu", "fp32", top_k=60).encode(pack), full)
    assert (load(layout, "cpu", "fp32", top_k=4).encode(pack) - full).abs().max() > 0.1
    with pytest.raises(ValueError, match="the reference has full attention only"):
        load(layout, "cpu", "fp32", top_k=4, padded=True)


def test_no_top_k_where_attention_is_causal(make_model: MakeModel) -> None:
    reason = why_no_top_k(read_layout(make_model(config={"is_decoder": True})))
    assert reason == "bert runs padded: is_decoder makes its attention causal"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "mpnet", "bert"])
def test_a_window_of_all_positions_stays_inside_the_table(model_type: str, padded: bool, make_model: MakeModel) -> None:
    layout = read_layout(make_model(model_type=model_type, max_positions=24))
    encoder = load(layout, "cpu", "fp32", padded=padded)
    assert layout.max_positions == 24
    assert encoder.encode(_pack([24, 24, 2], 100)).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        encoder.encode(_pack([25], 100))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision(precision: str, dtype: torch.dtype, model_type: str, padded: bool, make_model: MakeModel) -> None:
    layout = read_layout(make_model(model_type=model_type))
    pack = _pack([9, 5], 100)
    hidden = load(layout, "cpu", precision, padded=padded).encode(pack)
    assert hidden.dtype == dtype
    exact = load(layout, "cpu", "fp32", padded=True).encode(pack)
    assert torch.nn.functional.cosine_similarity(hidden.float(), exact).min() > 0.99


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_mpnet_pads(model_type: str, make_model: MakeModel) -> None:
    reason = why_padded(read_layout(make_model(model_type=model_type)))
    assert reason == ("mpnet runs padded: its modules take no attention function" if model_type == "mpnet" else None)


def _set(directory: Path, **settings: Any) -> Layout:
    """Change config.json; returns the layout."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return read_layout(directory)


def test_a_decoder_is_padded(tmp_path: Path) -> None:
    layout = _set(tiny_encoder(tmp_path), is_decoder=True)
    assert why_padded(layout) == "bert runs padded: is_decoder makes its attention causal"
    encoder = load(layout, "cpu", "fp32")
    assert encoder.padded
    short, long = _pack([5, 2], 100), _pack([9, 2], 100)
    torch.testing.assert_close(encoder.encode(short)[:5], encoder.encode(long)[:5], rtol=0, atol=1e-5)


def test_what_debertas_loop_does_not_cover_is_padded(tmp_path: Path) -> None:
    layout = _set(tiny_encoder(tmp_path, model_type="deberta"), talking_head=True)
    assert why_padded(layout) == "deberta runs padded: talking_head mixes the scores of its heads"


@pytest.mark.parametrize("layers", [12, 3])
def test_the_layout_of_chinese_bert_wwm_and_of_rbt3(layers: int, tmp_path: Path) -> None:
    """vocab.txt and no tokenizer.json; weights of the whole BertForMaskedLM, LayerNorm under its old names."""
    pieces = [
        "[PAD]",
        *(f"[unused{i}]" for i in range(1, 5)),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"\u4eba\u5929\u5730\u6c34\u706b",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    sizes: Any = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=len(pieces), num_hidden_layers=layers, initializer_range=0.4, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole: Any = BertForMaskedLM(config)
    whole.eval()
    whole.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    weights = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"bert", "cls"}
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in weights.items()
    }
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})

    windows = AutoTokenizer.from_pretrained(str(tmp_path))(["\u4eba\u5929 \u5730", "\u6c34"]).input_ids
    assert windows == [[6, 9, 10, 11, 7], [6, 12, 7]]
    encoder = load(read_layout(tmp_path), "cpu", "fp32")
    assert not encoder.padded
    hidden = encoder.encode(
        Pack(
            input_ids=np.concatenate(windows).astype(np.int32),
            cu_seqlens=np.array([0, 5, 8], np.int32),
            segments=np.arange(2),
        )
    )
    with torch.inference_mode():
        expected = torch.cat([whole.bert(torch.tensor([window])).last_hidden_state[0] for window in windows])
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)


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
