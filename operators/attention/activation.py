"""The activation ratio of top-k attention: pairs of tokens attended by pairs of full attention, from windows' lengths alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from operators.segmentation import Ints

PAIRS, PAIRS_KEPT = "attention_pairs", "attention_pairs_kept"
"""Statistics of a piece: what `count_pairs` counts in its passes with top-k attention."""


def count_pairs(lengths: Ints, k: int) -> dict[str, int]:
    """Sums of n * n and n * min(k, n) over windows of n tokens, `lengths` int64 [S]. What a tie adds is not counted."""
    return {PAIRS: int((lengths * lengths).sum()), PAIRS_KEPT: int((lengths * np.minimum(lengths, k)).sum())}


def activation_ratio(statistics: Mapping[str, float]) -> float | None:
    """The ratio of statistics summed over pieces; None where nothing ran with top-k attention."""
    full = statistics.get(PAIRS)
    return statistics[PAIRS_KEPT] / full if full else None
