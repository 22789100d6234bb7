"""What benchmarks/gpu.py encodes: seeded models of the common sizes, and documents whose tokens are drawn at random."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from operators.inputs import Inputs, Tokens, make_inputs
from operators.models.quiet import quiet
from operators.packing import Frame
from operators.segmentation import Ints, Windowing

CLS, SEP, _FIRST = 2, 3, 5
"""Ids of the special tokens, and of the first of the others; 0 is padding."""

FRAME = Frame(np.array([CLS], np.int32), np.array([SEP], np.int32))
_IDS = {"pad_token_id": 0, "bos_token_id": CLS, "cls_token_id": CLS, "eos_token_id": SEP, "sep_token_id": SEP}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, **_IDS}
_V3 = {
    "relative_attention": True,
    "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", _BASE | {"vocab_size": 30_522}),
    "modernbert-base": (
        "modernbert",
        _BASE | {"vocab_size": 50_368, "num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192},
    ),
    "deberta-v3-base": ("deberta-v2", _BASE | _V3 | {"vocab_size": 128_100}),
}
"""Name -> family and what of its config differs from transformers' defaults."""

_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 500}

_TINY_LONGEST = 64

DATASETS = {"A": (180, 0.9, 512), "B": (30, 0.9, 512), "C": (512, 0, 512), "D": (1500, 1.0, 8192)}
"""Name -> median, sigma and longest of log-normal lengths: A like web pages, B short texts, C all full, D long documents."""


def make_model(folder: Path, name: str, *, tiny: bool) -> dict[str, Any]:
    """Write the model with seeded weights, and a tokenizer that splits at spaces, to `folder`; returns its config."""
    family, settings = MODELS[name]
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**settings, **(_TINY if tiny else {})})
        AutoModel.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 4}
    words |= {word(i): i for i in range(_FIRST, config.vocab_size)}
    splitter = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    splitter.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    specials = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=splitter, model_max_length=config.max_position_embeddings, **specials
    ).save_pretrained(folder)
    read: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return read


def word(token: int) -> str:
    """The word that the tokenizer makes `token` of."""
    return f"t{token}"


@dataclass(frozen=True)
class Piece:
    """Documents of one window each, which are encoded in one call."""

    inputs: Inputs
    texts: list[str]
    """For libraries that tokenize by themselves."""

    @property
    def documents(self) -> int:
        """How many there are."""
        return self.inputs.n_documents

    @functools.cached_property
    def lengths(self) -> Ints:
        """int64 [D]: tokens of each, with the special ones."""
        return self.inputs.sizes + FRAME.size


def longest(dataset: str, *, tiny: bool) -> int:
    """Tokens of the longest document."""
    return _TINY_LONGEST if tiny else DATASETS[dataset][2]


def make_pieces(dataset: str, count: int, tokens: int, *, tiny: bool) -> list[Piece]:
    """`count` pieces of about `tokens` tokens each, drawn with a fixed seed. What is longer than the longest is cut."""
    median, sigma, _ = DATASETS[dataset]
    most, vocabulary = longest(dataset, tiny=tiny), _TINY["vocab_size"] if tiny else 30_000
    random = np.random.default_rng(0)
    pieces = []
    for _ in range(count):
        drawn = np.exp(random.normal(np.log(min(median, most)), sigma, tokens // 8 + 1)).clip(8, most).astype(np.int64)
        bodies = drawn[: np.searchsorted(np.cumsum(drawn), tokens) + 1] - FRAME.size
        ids = random.integers(_FIRST, vocabulary, bodies.sum(), dtype=np.int32)
        bounds = np.concatenate([[0], np.cumsum(bodies)]).astype(np.int64)
        texts = [" ".join(map(word, body.tolist())) for body in np.split(ids, bounds[1:-1])]
        pieces.append(Piece(make_inputs(Tokens(ids, bounds), Windowing(most - FRAME.size, 0)), texts))
    return pieces
