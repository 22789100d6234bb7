"""Floating-point operations of an encoder's forward pass by formula from its config.json: what a share of the peak is counted by.

Matrix products alone, a multiply-add being two operations; embeddings are looked up, heads are not the encoder's, and position
embeddings of DeBERTa are projected once for a model. Letters: n tokens of a window, d hidden size, f size of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from operators.segmentation import Ints

Config = dict[str, Any]


def flops(config: Config, lengths: Ints) -> float | None:
    """Operations of one forward over windows of `lengths` tokens (specials included), without padding.

    `config`: config.json of the model. None for a family without a formula, and where a size is left out."""
    formula = _FAMILIES.get(str(config.get("model_type")))
    try:
        return None if formula is None else formula(config, lengths.astype(np.float64))
    except (KeyError, TypeError):  # a size is left out or null, and transformers has its own default for it
        return None


def _bert(config: Config, n: Any) -> float:
    """2 (4 d^2 + 2 d f) for each token and layer, and 4 n^2 d for each window and layer."""
    d, f = config["hidden_size"], config["intermediate_size"]
    e = int(config.get("embedding_size") or d)  # ELECTRA and ALBERT widen narrower embeddings
    layers = config["num_hidden_layers"] * config.get("inner_group_num", 1)
    projection = 2 * e * d if e != d else 0
    return float(n.sum() * (layers * 2 * (4 * d * d + 2 * d * f) + projection) + layers * 4 * d * (n**2).sum())


def _distilbert(config: Config, n: Any) -> float:
    names = {"hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers"}
    return _bert({name: config[theirs] for name, theirs in names.items()}, n)


def _modernbert(config: Config, n: Any) -> float:
    """Gated feed-forward, 2 (4 d^2 + 3 d f); local layers see `local_attention` // 2 tokens to each side."""
    d, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kinds = config.get("layer_types")
    if kinds:
        local = sum(kind != "full_attention" for kind in kinds)
    else:
        local = sum(layer % config.get("global_attn_every_n_layers", 3) != 0 for layer in range(layers))
    reach = np.minimum(config.get("local_attention", 128) // 2, n - 1)
    near = n * (2 * reach + 1) - reach * (reach + 1)  # pairs of tokens at most `reach` apart
    pairs = (layers - local) * (n**2).sum() + local * near.sum()
    return float(n.sum() * layers * 2 * (4 * d * d + 3 * d * f) + 4 * d * pairs)


def _deberta(config: Config, n: Any) -> float:
    """BERT's, and for each kind of position score 2 n r d, r being the position embeddings that a window can need."""
    total = _bert(config, n)
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    kernel = config.get("conv_kernel_size", 0)
    if kernel:
        total += float(n.sum() * 2 * kernel * d * d / config.get("conv_groups", 1))
    if not config.get("relative_attention"):
        return total
    longest = config.get("max_relative_positions", -1)
    span = next(s for s in (config.get("position_buckets", -1), longest, config["max_position_embeddings"]) if s > 0)
    terms = config.get("pos_att_type") or []
    count = sum(kind in terms for kind in ("c2p", "p2c"))  # a list, or one string with bars
    return total + float(count * layers * 2 * d * (n * np.minimum(2 * n - 1, 2 * span)).sum())


_FAMILIES: dict[str, Callable[[Config, Any], float]] = {
    **dict.fromkeys(("albert", "bert", "camembert", "electra", "mpnet", "roberta", "xlm-roberta"), _bert),
    "deberta": _deberta,
    "deberta-v2": _deberta,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
}
