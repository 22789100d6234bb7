"""The formulas against what torch counts in transformers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from operators.flops import flops
from operators.models.files import read_json
from tests.tiny import MODEL_TYPES, tiny_encoder

LENGTH = 20


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path / "config.json", dict)
    assert config is not None
    return config


def _counted(path: Path, leave_out: tuple[str, ...]) -> int:
    """What torch counts in one window of LENGTH tokens, less the modules whose names end so."""
    model = AutoModel.from_pretrained(str(path), attn_implementation="eager").requires_grad_(False).eval()
    with torch.no_grad(), FlopCounterMode(display=False, depth=10) as counter:
        model(torch.full((1, LENGTH), 7))
    counts = counter.get_flop_counts()
    left_out = sum(sum(of.values()) for name, of in counts.items() if name.endswith(leave_out))
    return int(sum(counts["Global"].values()) - left_out)


@pytest.mark.parametrize("model_type", [m for m in MODEL_TYPES if not m.startswith("deberta") and m != "modernbert"])
def test_as_torch_counts(model_type: str, tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path, model_type=model_type)
    assert flops(_config(path), np.array([LENGTH])) == _counted(path, (".pooler",))


def test_modernbert_counts_the_tokens_that_are_near(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path, model_type="modernbert")  # a global layer and one that sees 8 tokens to each side
    near = sum(abs(i - j) <= 8 for i in range(LENGTH) for j in range(LENGTH))
    dense = _counted(path, ("rotary_emb",))
    assert flops(_config(path), np.array([LENGTH])) == dense - 4 * 32 * (LENGTH**2 - near)


@pytest.mark.parametrize("settings", [{}, {"conv_kernel_size": 3, "conv_act": "gelu"}, {"pos_att_type": ["p2c"]}])
def test_deberta_counts_position_scores_but_no_projection_of_the_positions(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path, model_type="deberta-v2", config=settings)
    slots, layers = 16, 2
    projections = 2 * layers * 2 * slots * 32**2  # transformers projects for both terms, whichever are asked for
    assert flops(_config(path), np.array([LENGTH])) == _counted(path, ()) - projections


_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "max_position_embeddings": 512}
_V3 = {"relative_attention": True, "position_buckets": 256, "pos_att_type": "p2c|c2p", "max_relative_positions": -1}


@pytest.mark.parametrize(
    ("config", "length", "millions"),
    [
        (_BASE | {"model_type": "bert"}, 512, 189),
        (_BASE | _V3 | {"model_type": "deberta-v2"}, 512, 208),
        (_BASE | {"model_type": "deberta", "relative_attention": False}, 512, 189),
        (_BASE | {"model_type": "modernbert", "intermediate_size": 1152, "num_hidden_layers": 22}, 512, 238),
    ],
)
def test_models_of_base_size(config: dict[str, Any], length: int, millions: int) -> None:
    """Millions of operations for each token, as worked out by hand."""
    total = flops(config, np.array([length, length]))
    assert total is not None
    assert round(total / (2 * length) / 1e6) == millions


def test_windows_add_up_and_an_unknown_family_has_no_formula() -> None:
    config = _BASE | {"model_type": "bert"}
    parts = [flops(config, np.array([n])) for n in (512, 30, 30)]
    assert flops(config, np.array([512, 30, 30])) == sum(part or 0 for part in parts)
    assert flops({"model_type": "t5"}, np.array([3])) is None
