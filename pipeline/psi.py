"""How far two histograms are apart: the population stability index (PSI), and how much of it chance alone explains.

PSI is the sum over the bins of (p - q) ln(p / q), p and q being the shares now and before (N. Siddiqi, Credit Risk Scorecards,
2006). By its usual reading less than 0.1 is no change and more than 0.2 is one. That reading forgets the numbers of documents:
without any change PSI / (1/n + 1/m) is distributed about as chi-square with B - 1 degrees of freedom (B. Yurdakul, Statistical
Properties of Population Stability Index, 2018), so that few documents in many bins pass 0.2 by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

ALARMS = 0.005
"""Chance of a false alarm in one comparison of all statistics of a table, where documents are independent."""

REST = "other"
"""Bins that hold too little to be compared on their own."""

_SMOOTH = 0.5
"""Added to each count, so that an empty bin has a share (Jeffreys' prior)."""

_LEAST = 5
"""Documents to be expected in a bin of the smaller side; below that, chi-square describes nothing."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two histograms over the same bins."""

    names: tuple[str, ...]
    before: Numbers
    now: Numbers
    """Counts."""

    @property
    def psi(self) -> float:
        """0 at least; 0 where there is one bin, or the counts are the same."""
        q, p = _shares(self.before), _shares(self.now)
        return float(((p - q) * np.log(p / q)).sum())

    def noise(self, documents_before: int, documents_now: int, tests: int) -> float:
        """What the index passes by chance in ALARMS / `tests` of all cases.

        A document that is counted several times (by each of its labels) still counts as one observation."""
        if len(self.names) < 2:
            return 0.0
        n, m = min(documents_before, self.before.sum()), min(documents_now, self.now.sum())
        return float(chi_square(1 - ALARMS / tests, len(self.names) - 1) * (1 / n + 1 / m))

    def moved(self, most: int) -> dict[str, tuple[float, float]]:
        """The bins that give most to the index: share before and share now."""
        q, p = _shares(self.before), _shares(self.now)
        order = np.argsort(-((p - q) * np.log(p / q)), kind="stable")[:most]
        before, now = self.before / self.before.sum(), self.now / self.now.sum()
        return {self.names[i]: (round(float(before[i]), 4), round(float(now[i]), 4)) for i in order}


def compare(before: Mapping[str, float], now: Mapping[str, float]) -> Comparison:
    """Two histograms on common bins, those that hold too little together as one."""
    names = sorted({*before, *now})
    q = np.array([before.get(name, 0) for name in names], np.float64)
    p = np.array([now.get(name, 0) for name in names], np.float64)
    total = q.sum() + p.sum()
    small = (q + p) / max(total, 1) * min(q.sum(), p.sum()) < _LEAST
    if small.sum() > 1:
        kept = [name for name, little in zip(names, small, strict=True) if not little]
        return Comparison((*kept, REST), np.append(q[~small], q[small].sum()), np.append(p[~small], p[small].sum()))
    return Comparison(tuple(names), q, p)


def chi_square(share: float, degrees: int) -> float:
    """The quantile of chi-square, by E. Wilson and M. Hilferty (1931); a few per cent too high far out with one degree."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + NormalDist().inv_cdf(share) * math.sqrt(part)) ** 3)


def _shares(counts: Numbers) -> Numbers:
    smoothed = counts + _SMOOTH
    shares: Numbers = smoothed / smoothed.sum()
    return shares
