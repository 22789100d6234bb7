"""torch.compile for the layers of a packed encoder: what stands around the matrix products and attention becomes few kernels.

A graph is made for one shape, so a pack is filled up to a round number of tokens (`packing.pad_tail`), and only sizes that come
often are compiled: full packs, hardly ever the last ones of a piece. Attention is one opaque operator in the graph; it finds the
windows of the pack beside it, so that packs of one size share a graph whatever their windows are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from operators.devices import is_out_of_memory
from operators.models import packed
from operators.models.families import DEBERTA
from operators.packing import Pack, pad_tail

ATTENTION = "tidemill_compiled"
"""As `packed.ATTENTION`, for graphs."""

_OFTEN = 8
"""Packs of one size before it counts as common."""
_SIZES = 4
"""Sizes that are compiled at most."""
_GRAPHS = 64
"""Graphs that torch may keep of one layer's code: for each size one of each kind of layer, and ModernBERT has three."""

_call: ContextVar[dict[str, Any]] = ContextVar("call")
"""What the model was called with: `windows` and all else that attention wants."""


class Compiled:
    """`forward` of `model` (`packed.Packed` or `deberta.Deberta`), with the model's layers compiled.

    `options`: for torch.compile, such as `backend` and `mode`."""

    def __init__(self, forward: Callable[[Pack], Tensor], model: Any, **options: Any) -> None:
        self._forward = forward
        self._seen: Counter[int] = Counter()
        self._sizes: set[int] = set()
        self._broken = False
        if model.config.model_type not in DEBERTA:
            model.set_attn_implementation(ATTENTION)
            model.register_forward_pre_hook(_remember, with_kwargs=True)
        torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
        for part in _parts(model):
            part.compile(dynamic=False, fullgraph=True, **options)

    def __call__(self, pack: Pack) -> Tensor:
        """float [T, H]"""
        size = fixed_size(len(pack.input_ids))
        if not self._is_common(size):
            return self._run_eager(pack)
        try:
            return self._forward(pad_tail(pack, size))[: len(pack.input_ids)]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            hidden = self._run_eager(pack)  # raises where the pack is to blame
            self._broken = True
            logging.getLogger(__name__).warning("torch.compile failed (%s); going on without it", type(error).__name__)
            return hidden

    def _is_common(self, size: int) -> bool:
        if self._broken:
            return False
        self._seen[size] += 1
        if self._seen[size] >= _OFTEN and len(self._sizes) < _SIZES:
            self._sizes.add(size)
        return size in self._sizes

    def _run_eager(self, pack: Pack) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return self._forward(pack)


def fixed_size(tokens: int) -> int:
    """The least number that is not below `tokens` and has at most five leading binary digits: at most a sixteenth more."""
    step = 1 << max(0, tokens.bit_length() - 5)
    return -(-tokens // step) * step


def _parts(model: Any) -> list[Any]:
    """The modules to compile: whole layers where transformers calls them, their parts around attention in DeBERTa's own loop."""
    family = model.config.model_type
    if family in DEBERTA:
        return [part for layer in model.encoder.layer for part in (layer.attention.output, layer.intermediate, layer.output)]
    if family == "albert":
        return [layer for group in model.encoder.albert_layer_groups for layer in group.albert_layers]
    if family == "modernbert":
        return list(model.layers)
    return list(model.transformer.layer if family == "distilbert" else model.encoder.layer)


_TAGS = tuple(getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name))
"""A recorded CUDA graph would go on with the windows of the pack that it was recorded with. Older versions lack the tag."""


def _remember(_: Any, __: Any, arguments: dict[str, Any]) -> None:
    _call.set({name: arguments[name] for name in ("windows", "top_k")})


@torch.library.custom_op(
    "tidemill::attend",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, float scaling, int? sliding_window) -> Tensor",
    tags=_TAGS,
)
def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
    """As the function registered as `packed.ATTENTION`, of the pack that the model was called with."""
    attend = ALL_ATTENTION_FUNCTIONS[packed.ATTENTION]
    mixed: Tensor = attend(None, query, key, value, None, scaling=scaling, sliding_window=sliding_window, **_call.get())[0]
    return mixed.contiguous()


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
    batch, heads, tokens, size = query.shape
    return query.new_empty((batch, tokens, heads, size))


def _attend_in_graph(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention for transformers: [1, N, T, D] in, [1, T, N, D] out."""
    return torch.ops.tidemill.attend(query, key, value, scaling, sliding_window), None


AttentionInterface.register(ATTENTION, _attend_in_graph)
