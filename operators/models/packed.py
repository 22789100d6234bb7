"""Packed forward, without padding, of the families whose modules take an attention function from transformers.

The model's own modules run on a batch of one, [1, T]; only attention needs to know where windows end. Position ids start anew
in each window, where the family counts from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from operators.attention import topk
from operators.attention.varlen import Windows, attend
from operators.models.families import WITHOUT_TOKEN_TYPES
from operators.packing import Pack, token_types
from operators.segmentation import Ints
from operators.transfer import to_device

ATTENTION = "tidemill_packed"
"""What models are to be loaded with as `attn_implementation`."""

_OFFSET_POSITIONS = ("camembert", "roberta", "xlm-roberta")
"""Families whose position ids start behind the padding id."""


class Packed:
    """A model of one of `families.PACKED`, loaded with ATTENTION. `top_k`: as `operators.attention.topk`, None for full."""

    def __init__(self, model: Any, top_k: int | None = None) -> None:
        self._model = model
        self._top_k = top_k
        family = model.config.model_type
        self._padding = model.config.pad_token_id if family in _OFFSET_POSITIONS else None
        self._token_types = family not in WITHOUT_TOKEN_TYPES

    def __call__(self, pack: Pack) -> Tensor:
        """float [T, H]"""
        device = self._model.device
        inputs = {"token_type_ids": as_batch(token_types(pack), device)} if self._token_types else {}
        output = self._model(
            input_ids=as_batch(pack.input_ids, device),
            position_ids=as_batch(position_ids(pack, self._padding), device),
            windows=Windows.of(pack, device),
            top_k=self._top_k,
            **inputs,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def position_ids(pack: Pack, padding: int | None = None) -> Ints:
    """int64 [T]: from 0 in each window; behind `padding` where that is given, an id that counts as no position of its own.

    The latter as transformers does it (`create_position_ids_from_input_ids`), for a text may spell the padding token."""
    if padding is None:
        counted = np.ones(len(pack.input_ids), np.int64)
        first = 0
    else:
        counted = (pack.input_ids != padding).astype(np.int64)
        first = padding + 1
    before = np.concatenate([[0], np.cumsum(counted)])
    within = before[:-1] - np.repeat(before[pack.cu_seqlens[:-1]], pack.lengths)
    return np.where(counted, within + first, first - 1)


def as_batch(values: Any, device: torch.device) -> Tensor:
    """int64 [1, T] on `device`."""
    return to_device(values, device).to(torch.int64)[None]


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    windows: Windows,
    top_k: int | None = None,
    scaling: float,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention for transformers: [1, N, T, D] in, [1, T, N, D] out.

    TypeError without `windows`: transformers would have dropped the mask of a padded batch by now, without a word."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if top_k is not None:
        return topk.attend((q, k, v), windows, scaling, top_k)[None], None
    # ModernBERT hands over one more than a token sees to each side; see transformers.modeling_flash_attention_utils.
    reach = None if sliding_window is None else sliding_window - 1
    return attend((q, k, v), windows, scaling, reach)[None], None


AttentionInterface.register(ATTENTION, _attend)
