"""Packs as rectangles: what models that pad take, whatever library runs them, and transformers' own modules run that way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators.models.families import WITHOUT_TOKEN_TYPES
from operators.packing import Pack, token_types
from operators.segmentation import Ints


@dataclass(frozen=True)
class Rectangles:
    """One pack as B windows of L tokens, the longest. What is flattened is of B * L slots."""

    inputs: dict[str, Ints]
    """int64 [B, L]: `input_ids`, `attention_mask`, and `token_type_ids` where the family takes them."""
    slots: Ints
    """int64 [T]: where the pack's tokens are, found here so that the device need not be asked for them."""


def rectangles(pack: Pack, *, with_token_types: bool) -> Rectangles:
    """A pack padded with id 0: padding stands behind the text and is masked, so any id will do."""
    mask = np.arange(pack.max_length) < pack.lengths[:, None]
    slots = np.flatnonzero(mask)

    def fill(values: Any) -> Ints:
        filled = np.zeros(mask.size, np.int64)
        filled[slots] = values
        return filled.reshape(mask.shape)

    inputs = {"input_ids": fill(pack.input_ids), "attention_mask": fill(1)}
    if with_token_types:
        inputs["token_type_ids"] = fill(token_types(pack))
    return Rectangles(inputs, slots)


def takes_token_types(model_type: str) -> bool:
    """Whether the family's models take `token_type_ids`."""
    return model_type not in WITHOUT_TOKEN_TYPES


class Padded:
    """transformers as it is: each pack becomes one rectangle with an attention mask."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._token_types = takes_token_types(model.config.model_type)

    def __call__(self, pack: Pack) -> Tensor:
        """float [T, H]"""
        made = rectangles(pack, with_token_types=self._token_types)
        output = self._model(**{name: torch.from_numpy(values).to(self._model.device) for name, values in made.inputs.items()})
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)[torch.from_numpy(made.slots).to(hidden.device)]
