"""The ledger under every crash, lost answer and interleaving that the simulator can make.

To replay a failure: `scenario(seed)` with the seed that the failure names.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest

from pipeline.ledger import publish
from tests.pipeline.ledger.fake_engine import Job, Source
from tests.pipeline.ledger.scenarios import calm, scenario
from tests.pipeline.ledger.simulator import CRASHES, FAULTS, Client, Crash, Disk, run

SEEDS = 200
"""Random scenarios in the tests."""

FIRST = {"p": Source("v1", 3, chained=False), "c": Source("v1", 5, chained=True)}
LATER = {**FIRST, "c": Source("v2", 3, chained=True), "n": Source("v1", 0, chained=False)}


def killed(disk: Disk, job: Job, at: int, kind: str) -> int:
    """A run with one fault, at request number `at`. Returns how many requests it made."""
    client = Client(disk, lambda n, _: kind if n == at else None)
    with suppress(Crash):
        run(client, job, Random(0))
    return client.requests


def prepared(night: str) -> tuple[Disk, Job]:
    """A table and the job that is to run on it."""
    disk, job = Disk(), Job("first", "g1", FIRST, keep_removed=True)
    if night == "empty table":
        return disk, job
    calm(disk, job)
    return disk, Job("second", "g2" if night == "new generation" else "g1", LATER, keep_removed=True)


@pytest.mark.parametrize("night", ["empty table", "new and changed shards", "new generation"])
def test_every_fault_at_every_request(night: str) -> None:
    requests = killed(*prepared(night), at=0, kind="none")
    assert requests > 10
    for at in range(1, requests + 1):
        for kind in FAULTS:
            disk, job = prepared(night)
            killed(disk, job, at, kind)
            calm(disk, replace(job, run_id="again"))


@pytest.mark.parametrize("night", ["empty table", "new and changed shards"])
def test_every_pair_of_crashes(night: str) -> None:
    requests = killed(*prepared(night), at=0, kind="none")
    for first in range(1, requests + 1):
        for first_kind in CRASHES:
            second = 0
            while True:  # until the second run ends before its crash
                second += 1
                disk, job = prepared(night)
                killed(disk, job, first, first_kind)
                made = killed(disk, replace(job, run_id="again"), second, CRASHES[second % 2])
                calm(disk, replace(job, run_id="at last"))
                if made < second:
                    break


@pytest.mark.parametrize("part", range(4))
def test_random_interleavings(part: int) -> None:
    for seed in range(part, SEEDS, 4):
        try:
            scenario(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error


def test_a_seed_stands_for_one_history() -> None:
    for seed in range(10):
        one, two = scenario(seed), scenario(seed)
        assert (one.requests, one.published, one.runs) == (two.requests, two.published, two.runs)


def test_an_engine_that_loses_pieces_publishes_nothing() -> None:
    disk = Disk()
    assert run(Client(disk), Job("lossy", "g1", FIRST, True, loses=0.5), Random(0)) == "incomplete"
    assert publish.head(Client(disk)) is None
    calm(disk, Job("sound", "g1", FIRST, True))


def test_a_finished_job_publishes_nothing_and_does_nothing() -> None:
    disk = Disk()
    calm(disk, Job("first", "g1", FIRST, True))
    before = dict(disk.objects)
    assert run(Client(disk), Job("second", "g1", FIRST, True), Random(0)) == "nothing to do"
    assert disk.objects == before
