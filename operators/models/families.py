"""Which families of models run how. Reads config.json alone and imports nothing heavy, for planning."""

from __future__ import annotations

from typing import Any

from operators.models.files import read_json
from operators.models.layout import Layout

DEBERTA = ("deberta", "deberta-v2")
"""Packed by `operators.models.deberta`; the second is v2 and v3."""

PACKED = ("albert", "bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")
"""Packed by `operators.models.packed`: their modules take an attention function."""

TOP_K = tuple(family for family in PACKED if family != "modernbert")
"""Families that can have top-k attention; most of ModernBERT's layers are local already."""

WITHOUT_TOKEN_TYPES = ("distilbert", "modernbert", "mpnet")
"""Families that take no token types; the others get them always, as transformers would make them up for the wrong shape."""


def why_padded(layout: Layout) -> str | None:
    """Why this model's packs are padded, for the plan; None where they are not."""
    family = layout.model_type
    config: dict[str, Any] = read_json(layout.transformer_dir / "config.json", dict) or {}
    if family in DEBERTA:
        reason = "talking_head mixes the scores of its heads" if config.get("talking_head") else None
    elif family not in PACKED:
        reason = "its modules take no attention function"
    else:
        reason = "is_decoder makes its attention causal" if config.get("is_decoder") else None
    return None if reason is None else f"{family} runs padded: {reason}"


def why_no_top_k(layout: Layout) -> str | None:
    """Why this model cannot have top-k attention; None where it can."""
    if layout.model_type not in TOP_K:
        return f"{layout.model_type} has full attention only; those with top-k: {', '.join(TOP_K)}"
    return why_padded(layout)
