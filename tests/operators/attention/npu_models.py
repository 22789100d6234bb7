"""Seeded tiny models and a pack for the tests of the NPU path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from operators.models.packed import ATTENTION
from operators.packing import Pack

LENGTHS = [60, 40, 40, 17, 17, 17, 9, 2, 1, 1]
HEADS, SIZE, LAYERS = 2, 16, 3
_SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": HEADS * SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,  # attention far from uniform
    "pad_token_id": 0,
}
_MODERNBERT: dict[str, Any] = {
    "local_attention": 16,
    "global_attn_every_n_layers": LAYERS,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
_DEBERTA = _SIZES | {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}
_V3 = _DEBERTA | {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}
MODELS: dict[str, PreTrainedConfig] = {
    "BERT": BertConfig(**_SIZES),
    "RoBERTa": RobertaConfig(**_SIZES),
    "ModernBERT": ModernBertConfig(**(_SIZES | _MODERNBERT)),
    "DeBERTa v1": DebertaConfig(**_DEBERTA),
    "DeBERTa v2": DebertaV2Config(**(_V3 | {"share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"})),
    "DeBERTa v3": DebertaV2Config(**_V3),
    "DeBERTa v3, c2p alone": DebertaV2Config(**(_V3 | {"pos_att_type": "c2p"})),
    "DeBERTa v3, p2c alone": DebertaV2Config(**(_V3 | {"pos_att_type": "p2c"})),
}


def make(name: str, attention: str | None = ATTENTION) -> Any:
    """The model of this name; `attention` is for the families that take one."""
    auto: Any = AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {} if "DeBERTa" in name else {"attn_implementation": attention}
        return auto.from_config(MODELS[name], **options).eval()


def pack(lengths: list[int]) -> Pack:
    """Random tokens, none of them padding."""
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    ids = np.random.default_rng(0).integers(5, 100, ends[-1], np.int32)
    return Pack(input_ids=ids, cu_seqlens=ends, segments=np.arange(len(lengths)))
