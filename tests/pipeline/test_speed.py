"""Rates and shares in a run's report."""

from __future__ import annotations

import pytest

from pipeline.speed import Clock, speed


def test_rates_and_shares_of_a_run() -> None:
    clock = Clock(seconds=20.0)
    for tokens, documents, seconds in ((100.0, 10, 8.0), (300.0, 30, 12.0), (300.0, 40, 16.0)):
        clock.add(tokens, documents, seconds)
    statistics = {
        "tokens": 700.0,
        "padding": 300.0,
        "encode_seconds": 9.0,
        "idle_seconds": 1.0,
        "prepare_seconds": 1.0,
        "warm_flops": 4e9,
        "possible_flops": 8e9,
    }
    assert speed(clock, statistics, 18.0) == {
        "documents_per_second": 4.0,
        "tokens_per_second": 35.0,
        "warm_tokens_per_second": 75.0,  # 600 tokens in the 8 seconds after the first outcome
        "padding_share": 0.3,
        "idle_share": 0.1,
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
