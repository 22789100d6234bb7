"""Encoders by transformers' own modules on CPU, CUDA or NPU, packed where the family allows it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from operators.models import deberta, packed
from operators.models.files import read_json
from operators.models.layout import Layout
from operators.models.quiet import quiet
from operators.packing import Pack

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A transformers encoder in evaluation mode. `forward` makes float [T, H] on `device` of a pack."""

    def __init__(self, forward: Callable[[Pack], Tensor], hidden_size: int, device: torch.device, *, padded: bool) -> None:
        self._forward = forward
        self.hidden_size = hidden_size
        self.device = device
        self.padded = padded

    @torch.inference_mode()
    def encode(self, pack: Pack) -> Tensor:
        """float [T, H] on the device, in the precision of the model."""
        return self._forward(pack)


def load(layout: Layout, device: str, precision: str, *, padded: bool = False) -> Encoder:
    """Load the transformer of `layout` to `device` (cpu, cuda or npu). ValueError where its weights are incomplete.

    `padded`: as the reference that the packed families are compared with, even where the family can run packed."""
    if device == "npu":
        importlib.import_module("torch_npu")  # registers the device with torch
    padded = padded or why_padded(layout) is not None
    attention = None if padded or layout.model_type in deberta.FAMILIES else packed.ATTENTION
    model = _load_model(layout, _DTYPES[precision], attention).to(device).eval()
    forward: Callable[[Pack], Tensor]
    if padded:
        forward = _Padded(model)
    elif layout.model_type in deberta.FAMILIES:
        forward = deberta.Deberta(model)
    else:
        forward = packed.Packed(model)
    return Encoder(forward, layout.hidden_size, torch.device(device), padded=padded)


def why_padded(layout: Layout) -> str | None:
    """Why this model's packs are padded, for the plan; None where they are not. Reads config.json alone."""
    family = layout.model_type
    config = read_json(layout.transformer_dir / "config.json", dict) or {}
    if family in deberta.FAMILIES:
        reason = deberta.why_padded(config)
    elif family not in packed.FAMILIES:
        reason = "its modules take no attention function"
    else:
        reason = "is_decoder makes its attention causal" if config.get("is_decoder") else None
    return None if reason is None else f"{family} runs padded: {reason}"


class _Padded:
    """transformers as it is: each pack becomes one rectangle with an attention mask."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._token_types = model.config.model_type not in packed.WITHOUT_TOKEN_TYPES

    def __call__(self, pack: Pack) -> Tensor:
        """float [T, H]"""
        mask = np.arange(pack.max_length) < pack.lengths[:, None]
        # Slots of the real tokens in the rectangle, found here so that the device need not be asked for them.
        slots = np.flatnonzero(mask)

        def rectangle(values: Any) -> Tensor:
            filled = np.zeros(mask.size, np.int64)  # padding stands behind the text and is masked, so any id will do
            filled[slots] = values
            return torch.from_numpy(filled.reshape(mask.shape)).to(self._model.device)

        inputs = {"token_type_ids": rectangle(packed.token_types(pack))} if self._token_types else {}
        output = self._model(input_ids=rectangle(pack.input_ids), attention_mask=rectangle(1), **inputs)
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)[torch.from_numpy(slots).to(hidden.device)]


def _load_model(layout: Layout, dtype: torch.dtype, attention: str | None) -> Any:
    with quiet():
        model, found = AutoModel.from_pretrained(
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
