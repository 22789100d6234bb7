"""Models of transformers with their weights, and their forward over packs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel

from operators.models.deberta import Deberta
from operators.models.families import DEBERTA
from operators.models.finite import Forward, Guarded
from operators.models.layout import Layout
from operators.models.packed import ATTENTION, Packed
from operators.models.padded import Padded
from operators.models.prepacked import prepack
from operators.models.quiet import quiet

__all__ = ["forward", "guard", "load_model", "prepack"]


def forward(model: Any, *, padded: bool, top_k: int | None) -> Forward:
    """What makes float [T, H] of a pack with `model`, as `load_model` gave it."""
    if padded:
        return Padded(model)
    return Deberta(model) if model.config.model_type in DEBERTA else Packed(model, top_k)


def guard(inner: Forward, layout: Layout, device: str, *, padded: bool, top_k: int | None) -> Forward:
    """`inner`, which computes in fp16, with bf16 to go on with where its numbers overflow. That is read from the files again,
    for a number that is infinite in fp16 stays so."""

    def in_bf16() -> Forward:
        model = load_model(layout, torch.bfloat16, packed=not padded).to(device).eval()
        return forward(model, padded=padded, top_k=top_k)

    return Guarded(inner, in_bf16)


def load_model(layout: Layout, dtype: torch.dtype, *, packed: bool) -> Any:
    """The transformer of `layout`, on the CPU. ValueError where its weights are incomplete."""
    attention = ATTENTION if packed and layout.model_type not in DEBERTA else None
    with quiet():
        model, found = AutoModel.from_pretrained(  # a directory that was checked  # nosec B615
            str(layout.transformer_dir),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    # BERT's pooler is not used: sentence-transformers' files often lack it, and it is then made up.
    missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
    if missing or found["mismatched_keys"]:
        wrong = sorted([*missing, *(str(m[0]) for m in found["mismatched_keys"])])
        raise ValueError(
            f"{layout.transformer_dir}: {len(wrong)} weights are missing or of another shape, the first is {wrong[0]}"
        )
    return model
