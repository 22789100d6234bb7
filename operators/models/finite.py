"""A forward in fp16 that is left for one of more range as soon as its numbers do not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from operators.packing import Pack

Forward = Callable[[Pack], Tensor]
"""Makes float [T, H] of a pack."""


class Guarded:
    """`forward`, until it gives a number that is not finite: that pack is run again by what `fallback` makes, and so are all
    after it, so that one set of weights stays in use.

    An overflow inside of the model does not stay hidden there: infinities become NaN in the next softmax or LayerNorm, and that
    spreads to the output (but for a score of minus infinity, whose token has no weight in any precision). While `forward` is in
    use each pack costs one wait for the device; afterwards none."""

    def __init__(self, forward: Forward, fallback: Callable[[], Forward]) -> None:
        self.fell_back = False
        self._forward = forward
        self._fallback: Callable[[], Forward] | None = fallback

    def __call__(self, pack: Pack) -> Tensor:
        """float [T, H], in the precision of what made it. What the fallback gives is not looked at."""
        hidden = self._forward(pack)
        if self._fallback is None or bool(torch.isfinite(hidden).all()):
            return hidden
        del hidden
        self._forward = self._fallback()
        self._fallback = None
        self.fell_back = True
        logging.getLogger(__name__).warning("fp16 gave numbers that are not finite; going on with another precision")
        return self._forward(pack)
