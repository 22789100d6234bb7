"""Rates and shares in a run's report."""

from __future__ import annotations

import pytest

from pipeline.speed import Clock, speed


def test_rates_and_shares_of_a_run() -> None:
    clock = Clock(seconds=20.0)
    for tokens, documents in ((100.0, 10), (300.0, 30), (300.0, 40)):
        clock.add(tokens, documents)
    statistics = {
        "tokens": 700.0,
        "padding": 300.0,
        "encode_seconds": 9.0,
        "idle_seconds": 1.0,
        "warm_seconds": 4.0,
        "warm_tokens": 300.0,
        "workers": 2,
        "prepare_seconds": 1.0,
        "warm_flops": 4e9,
        "possible_flops": 8e9,
    }
    assert speed(clock, statistics, 18.0) == {
        "documents_per_second": 4.0,
        "tokens_per_second": 35.0,
        "warm_tokens_per_second": 120.0,  # two workers, who had 300 tokens in 5 seconds of theirs
        "padding_share": 0.3,
        "idle_share": 0.2,
        "prepare_share": 0.1,
        "mfu": 0.5,
        "cost_per_million_documents": 1250.0,  # 18 for an hour, 0.1 for these 80 documents
    }


@pytest.mark.parametrize("clock", [Clock(), Clock(seconds=3.0)])
def test_what_was_not_measured_is_not_made_up(clock: Clock) -> None:
    found = speed(clock, {}, None)
    rates = {"documents_per_second", "tokens_per_second"} if clock.seconds else set()
    assert {name for name, value in found.items() if value is not None} == rates
    assert all(found[name] == 0.0 for name in rates)
