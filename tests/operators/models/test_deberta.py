"""DeBERTa in all its versions gives what transformers gives, packed, and each way of getting it wrong shows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, DebertaConfig, DebertaV2Config

from operators.attention.disentangled import Positions
from operators.attention.varlen import Windows
from operators.models import deberta
from operators.models.deberta import Deberta
from operators.models.families import DEBERTA
from operators.packing import Pack
from tests.tiny import WORDS, tiny_encoder

EXACT = 1e-5
LENGTHS = [50, 40, 40, 17, 17, 17, 2, 1, 1]
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "relative_attention": True,
    "initializer_range": 0.25,  # attention far from uniform, yet not so sharp that it magnifies the last bit
}
V3 = {
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}
V1 = {"pos_att_type": "c2p|p2c", "position_biased_input": False, "type_vocab_size": 0, "max_relative_positions": -1}
CONFIGS: dict[str, dict[str, Any]] = {
    "v3": V3,
    "v3, distances beyond the last bucket": V3 | {"max_relative_positions": 30},
    "v3, odd number of buckets": V3 | {"position_buckets": 7, "max_relative_positions": 20},
    "v2 xlarge: convolution": V3 | {"conv_kernel_size": 3, "conv_act": "gelu"},
    "v2: wide convolution": V3 | {"conv_kernel_size": 5, "conv_act": "tanh", "conv_groups": 4},
    "v2: projections of its own": V3 | {"share_att_key": False, "norm_rel_ebd": "none"},
    "v2: c2p alone": V3 | {"pos_att_type": "c2p"},
    "v2: p2c alone, projection of its own": V3 | {"pos_att_type": "p2c", "share_att_key": False},
    "v2: no buckets": V3 | {"position_buckets": -1, "max_relative_positions": 32},
    "v2: embeddings narrower than the layers": V3 | {"embedding_size": 16},
    "v2: absolute positions and token types": V3 | {"position_biased_input": True, "type_vocab_size": 2},
    "v2: no relative attention": V3 | {"relative_attention": False, "position_biased_input": True},
    "v1": V1,
    "v1: windows longer than its positions reach": V1 | {"max_relative_positions": 24},
    "v1: c2p alone": V1 | {"pos_att_type": "c2p"},
    "v1: p2c alone": V1 | {"pos_att_type": "p2c"},
    "v1: absolute positions and token types": V1 | {"position_biased_input": True, "type_vocab_size": 2},
    "v1: embeddings narrower than the layers": V1 | {"embedding_size": 16},
}


def make(name: str) -> Any:
    """A seeded model of this config, its biases random too."""
    config = (DebertaConfig if name.startswith("v1") else DebertaV2Config)(**(SIZES | CONFIGS[name]))
    auto: Any = AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def pack(lengths: list[int]) -> Pack:
    """Random tokens and token types."""
    ids, types = np.random.default_rng(0).integers((5, 0), (100, 2), (sum(lengths), 2), np.int32).T
    return Pack(
        input_ids=np.ascontiguousarray(ids),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        segments=np.arange(len(lengths)),
        token_types=np.ascontiguousarray(types),
    )


@torch.inference_mode()
def reference(model: Any, pack: Pack) -> Tensor:
    """float [T, H] by transformers, padded."""
    mask = torch.arange(pack.max_length) < torch.from_numpy(pack.lengths)[:, None]
    assert pack.token_types is not None
    ids, types = torch.zeros(2, *mask.shape, dtype=torch.long)
    ids[mask] = torch.from_numpy(pack.input_ids).long()
    types[mask] = torch.from_numpy(pack.token_types).long()
    hidden: Tensor = model(input_ids=ids, token_type_ids=types, attention_mask=mask.long()).last_hidden_state
    return hidden[mask]


@torch.inference_mode()
def error(model: Any, pack: Pack) -> float:
    """Largest difference between packed and padded."""
    return float((Deberta(model)(pack) - reference(model, pack)).abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_like_transformers_padded(name: str) -> None:
    model = make(name)
    assert error(model, pack(LENGTHS)) <= EXACT
    assert reference(model, pack(LENGTHS)).abs().mean() > 0.3  # so that the tolerance means something


@pytest.mark.parametrize("name", ["v3", "v2 xlarge: convolution", "v1"])
def test_the_order_of_windows_does_not_matter(name: str) -> None:
    assert error(make(name), pack([1, 40, 2, 40, 17, 1])) <= EXACT


def test_windows_longer_than_max_position_embeddings() -> None:
    assert error(make("v3"), pack([200, 129, 3])) <= EXACT


@torch.inference_mode()
def test_positions_are_laid_out_once_and_anew_for_longer_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    by_distance = Positions.by_distance

    def counted(positions: Positions, slots: Tensor) -> Positions:
        made.append(len(slots))
        return by_distance(positions, slots)

    monkeypatch.setattr(Positions, "by_distance", counted)
    model = make("v3")
    ours = Deberta(model)
    for lengths in ([2, 1], [63, 9], [64], [3], [65], [127]):
        assert (ours(pack(lengths)) - reference(model, pack(lengths))).abs().max() <= EXACT
    assert made == [127, 127, 127, 255, 255, 255]  # three layers; windows of up to 63 tokens, then of up to 127


@pytest.mark.parametrize("family", DEBERTA)
def test_texts_of_the_family(family: str, tmp_path: Path) -> None:
    tiny_encoder(tmp_path, model_type=family)
    words = np.random.default_rng(0).choice(WORDS, 60).tolist()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    windows = tokenizer([" ".join(words[:n]) for n in (50, 20, 20, 1, 0)], add_special_tokens=True).input_ids
    lengths = [len(window) for window in windows]
    framed = Pack(
        input_ids=np.concatenate(windows).astype(np.int32),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        segments=np.arange(len(lengths)),
        token_types=np.zeros(sum(lengths), np.int32),
    )
    assert error(AutoModel.from_pretrained(str(tmp_path)).eval(), framed) <= EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["v3", "v2 xlarge: convolution", "v1"])
def test_half_precision_loses_no_more_than_transformers(name: str, dtype: torch.dtype) -> None:
    exact = reference(make(name), pack(LENGTHS))
    model = make(name).to(dtype)
    with torch.inference_mode():
        ours = Deberta(model)(pack(LENGTHS))
    assert ours.dtype == dtype
    loss, loss_of_reference = (
        (hidden.float() - exact).square().mean().sqrt() for hidden in (ours, reference(model, pack(LENGTHS)))
    )
    assert loss < 1.05 * loss_of_reference


# Each trap is stepped in on purpose: the comparison above has to see it.


def test_a_convolution_that_reaches_into_the_neighbours_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    convolve = deberta._convolve

    def leaking(convolution: Any, embedded: Tensor, hidden: Tensor, windows: Windows) -> Tensor:
        return convolve(convolution, embedded, hidden, Windows.of(_as_one(pack(LENGTHS)), hidden.device))

    monkeypatch.setattr(deberta, "_convolve", leaking)
    assert error(make("v2 xlarge: convolution"), pack(LENGTHS)) > 0.1


def test_windows_that_see_each_other_show(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Windows.of
    monkeypatch.setattr(Windows, "of", lambda pack, device: of(_as_one(pack), device))
    assert error(make("v3"), pack(LENGTHS)) > 0.1


def _as_one(pack: Pack) -> Pack:
    ends = pack.cu_seqlens[[0, -1]]
    return Pack(input_ids=pack.input_ids, cu_seqlens=ends, segments=np.zeros(1, np.int64))


@pytest.mark.parametrize("name", ["v3", "v1"])
def test_slots_off_by_one_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = deberta._slots
    monkeypatch.setattr(deberta, "_slots", lambda config, length: slots(config, length).roll(1))
    assert error(make(name), pack(LENGTHS)) > 0.1


@pytest.mark.parametrize("name", ["v3", "v1"])
def test_distances_without_buckets_or_of_the_other_sign_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = deberta._slots
    monkeypatch.setattr(deberta, "_slots", lambda config, length: slots(config, length).flip(0))
    assert error(make(name), pack(LENGTHS)) > 0.1
    plain = copy.deepcopy(make("v3").config)
    plain.position_buckets, plain.max_relative_positions = -1, 16
    monkeypatch.setattr(deberta, "_slots", lambda config, length: slots(plain, length))
    assert error(make("v3"), pack(LENGTHS)) > 0.1


@pytest.mark.parametrize("name", ["v3", "v1"])
def test_position_scores_of_another_scale_show(name: str) -> None:
    model = make(name)
    ours = Deberta(model)
    for attention in ours._attention:
        attention._scale *= (3 / 2) ** 0.5  # as if there were one position term and not two
    with torch.inference_mode():
        assert (ours(pack(LENGTHS)) - reference(model, pack(LENGTHS))).abs().max() > 0.1


@pytest.mark.parametrize("name", ["v3", "v1"])
@pytest.mark.parametrize("term", ["keys", "queries"])
def test_a_term_that_is_left_out_shows(name: str, term: str) -> None:
    model = make(name)
    ours = Deberta(model)
    for attention in ours._attention:
        kept = {"keys": attention.positions.keys, "queries": attention.positions.queries, term: None}
        attention.positions = Positions(**kept)
    with torch.inference_mode():
        assert (ours(pack(LENGTHS)) - reference(model, pack(LENGTHS))).abs().max() > 0.1


def test_queries_keys_and_values_in_another_order_show() -> None:
    model = make("v1")
    packed = reference(model, pack(LENGTHS))
    wrong = copy.deepcopy(model)
    for layer in wrong.encoder.layer:
        weight = layer.attention.self.in_proj.weight.data
        # As if all queries came first, and not those of each head.
        weight.copy_(weight.unflatten(0, (3, 2, -1)).transpose(0, 1).flatten(0, 2))
    with torch.inference_mode():
        assert (Deberta(wrong)(pack(LENGTHS)) - packed).abs().max() > 0.1
