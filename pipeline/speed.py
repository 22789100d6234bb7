"""How fast a run was, and where its time went: the `speed` of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MILLION = 1_000_000


@dataclass
class Clock:
    """Tokens and documents encoded by a run, and how long it took."""

    tokens: float = 0.0
    documents: int = 0
    seconds: float = 0.0
    """Of the whole run, starting the engine included."""

    def add(self, tokens: float, documents: int) -> None:
        """One more piece was encoded."""
        self.tokens += tokens
        self.documents += documents


def speed(clock: Clock, statistics: Mapping[str, float], price_per_hour: float | None) -> dict[str, float | None]:
    """Rates and shares of a run. `statistics`: sums over its pieces (`pipeline.passes`); None where nothing was measured.

    `mfu` is the share of the operations that the devices could have done while they encoded, at the speed of their own
    matrix products (model FLOPs utilization, arXiv 2204.02311, appendix B), after each worker's first piece."""
    encode, prepare = statistics.get("encode_seconds", 0.0), statistics.get("prepare_seconds", 0.0)
    padding, idle = statistics.get("padding", 0.0), statistics.get("idle_seconds", 0.0)
    warm = idle + statistics.get("warm_seconds", 0.0)
    warm_tokens = statistics.get("warm_tokens", 0.0) * statistics.get("workers", 1)
    hours = clock.seconds / 3600
    cost = price_per_hour * hours * _MILLION / clock.documents if price_per_hour is not None and clock.documents else None
    return {
        "documents_per_second": _share(clock.documents, clock.seconds, 3),
        "tokens_per_second": _share(clock.tokens, clock.seconds, 1),
        "warm_tokens_per_second": _share(warm_tokens, warm, 1),
        "padding_share": _share(padding, statistics.get("tokens", 0.0) + padding),
        "idle_share": _share(idle, warm),
        "prepare_share": _share(prepare, prepare + encode),
        "mfu": _share(statistics.get("warm_flops", 0.0), statistics.get("possible_flops", 0.0)),
        "cost_per_million_documents": None if cost is None else round(cost, 4),
    }


def _share(part: float, whole: float, digits: int = 4) -> float | None:
    return round(part / whole, digits) if whole > 0 else None
