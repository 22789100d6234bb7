"""Packs shrink when memory runs out, grow again, and wait longer each time that this was too early."""

from __future__ import annotations

from operators.budget import Budget


def _good(budget: Budget, packs: int) -> int:
    for _ in range(packs):
        budget.went_well()
    return budget.tokens


def test_out_of_memory_halves_what_did_not_fit() -> None:
    budget = Budget(1000)
    budget.exhausted(600)
    assert budget.tokens == 300
    budget.exhausted(2000)
    assert budget.tokens == 150
    for _ in range(20):
        budget.exhausted(budget.tokens)
    assert budget.tokens == 1


def test_grows_again_up_to_what_was_asked_for() -> None:
    budget = Budget(1000)
    assert _good(budget, 100) == 1000
    budget.exhausted(900)
    assert _good(budget, 31) == 450
    assert _good(budget, 1) == 900
    assert _good(budget, 32) == 1000
    assert _good(budget, 100) == 1000


def test_waits_twice_as_long_after_it_grew_too_early() -> None:
    budget = Budget(1024)
    budget.exhausted(1024)
    budget.exhausted(512)  # the same trouble: it has not grown since
    assert _good(budget, 32) == 512
    budget.exhausted(512)
    assert _good(budget, 63) == 256
    assert _good(budget, 1) == 512
    budget.exhausted(512)
    assert _good(budget, 127) == 256
    assert _good(budget, 1) == 512


def test_fits_what_is_free_and_never_grows_beyond_it() -> None:
    budget = Budget(1000)
    budget.fit(used=100_000, tokens=1000, free=1_000_000)
    assert budget.tokens == 1000  # there is room for more, but not more was asked for
    budget.fit(used=100_000, tokens=1000, free=50_000)
    assert budget.tokens == 400  # a fifth stays free
    budget.exhausted(400)
    assert _good(budget, 500) == 400
    budget.fit(used=0, tokens=1000, free=1)
    assert budget.tokens == 400
    budget.fit(used=100, tokens=1, free=1)
    assert budget.tokens == 1
