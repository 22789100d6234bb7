"""Backend torch, but single words of the tiny vocabulary are poison: each kind has its own."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from operators.encoders import torch as real
from operators.encoders.torch import why_no_top_k, why_padded
from operators.models.layout import Layout
from operators.packing import Pack

__all__ = ["Encoder", "load", "why_no_top_k", "why_padded"]

WORDS = {
    "abort": "storm", "segfault": "gene", "loop": "orbit", "held": "lion",
    "memory": "blood", "exception": "drug", "nan": "queen", "slow": "music",
}  # fmt: skip
"""Kind -> word. `held` loops without ever giving Python's lock back."""


def act(kind: str) -> None:
    """What the poison does."""
    if kind == "abort":
        os.abort()
    elif kind == "segfault":
        ctypes.string_at(0)
    elif kind == "loop":
        while True:
            pass
    elif kind == "held":
        ctypes.PyDLL(None).pause()
    elif kind == "memory":
        taken = []
        while True:
            taken.append(np.ones(8 << 20, np.uint8))
    elif kind == "exception":
        raise RuntimeError("poison")


class Encoder:
    """The real encoder; looks for poison first."""

    def __init__(self, encoder: real.Encoder, layout: Layout) -> None:
        self._encoder = encoder
        self.hidden_size = encoder.hidden_size
        self.device = encoder.device
        self.padded = encoder.padded
        self.concurrent = encoder.concurrent
        tokenizer = tokenizers.Tokenizer.from_file(str(layout.transformer_dir / "tokenizer.json"))
        self._kinds = {tokenizer.token_to_id(word): kind for kind, word in WORDS.items()}

    @torch.inference_mode()
    def encode(self, pack: Pack) -> Tensor:
        """As the real one, unless there is poison in the pack."""
        found = sorted(set(pack.input_ids.tolist()) & self._kinds.keys())
        for token in found:
            act(self._kinds[token])
        if os.environ.get("POISON_STAGE") == "always":
            act("abort")
        hidden = self._encoder.encode(pack)
        for token in found:
            if self._kinds[token] == "nan":
                hidden[pack.input_ids == token] = torch.nan
        return hidden


def load(layout: Layout, device: str, precision: str, **options: Any) -> Encoder:
    """As backend torch."""
    return Encoder(real.load(layout, device, precision, **options), layout)
