"""The tables of whole jobs add up; running them takes minutes and is `make bench`'s work."""

from __future__ import annotations

from typing import Any

from benchmarks import whole_jobs
from benchmarks.reporting import Usage
from benchmarks.whole_jobs import Bare


def _report(tokens: int, warm: float | None) -> dict[str, Any]:
    speed = {"warm_tokens_per_second": warm, "idle_share": None if warm is None else 0.02, "mfu": 0.8}
    return {"tokens": tokens, "statistics": {"flops": tokens * 1e7}, "speed": speed}


def test_shares_are_of_medians_of_the_same_run() -> None:
    bare = Bare({"fp32": [90.0, 100.0, 300.0]}, {"fp32": [5000.0, 4000.0, 8000.0]})
    small = [(Usage(wall, 12.0, 0.0, 2**20), _report(20_000, 4400.0)) for wall in (8.0, 10.0, 11.0)]
    large = [(Usage(wall, 36.0, 0.0, 3 * 2**20), _report(80_000, 4840.0)) for wall in (20.0, 20.0, 40.0)]
    done = {("local", "fp32", "1x"): small, ("local", "fp32", "4x"): large, ("ray", "fp32", "1x"): small}
    text = "\n".join(whole_jobs.report(done, bare, "about"))
    assert "| local fp32 | 10.0 | 20.0 | 8.0 10.0 11.0 | 20.0 20.0 40.0 | 2,000 | 4,000 | 4,400 | 4,840 | 1.100 |" in text
    assert "| local fp32 | 20% | 40% | 40% | 80% | 2.0% | 2.0% | 80% | 80% | 1 | 3 | 1.80 |" in text
    assert "fp32 100 GFLOP/s (runs: 90 100 300)" in text
    assert "Encoding alone: fp32 5,000 tokens/s (runs: 5000 4000 8000)" in text
    assert "| ray fp32" not in text, "it has run at one size only"


def test_what_was_not_measured_is_a_dash() -> None:
    small = [(Usage(10.0, 12.0, 0.0), _report(20_000, None))]
    text = "\n".join(whole_jobs.report({("ray", "bf16", "1x"): small, ("ray", "bf16", "4x"): small}, Bare(), "about"))
    assert "| ray bf16 | - | - | - | - | - | - | 80% |" in text
    assert "Encoding alone: not measured" in text
