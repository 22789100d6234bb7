"""The ledger under every crash, lost answer and interleaving that the simulator can make.

To replay a failure: call what it names, such as `scenario(seed)`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest

from pipeline.ledger import publish, records, vacuum
from tests.pipeline.ledger.fake_engine import Job, Source
from tests.pipeline.ledger.interleave import play
from tests.pipeline.ledger.scenarios import calm, readable, scenario, sweep
from tests.pipeline.ledger.simulator import CRASHES, FAULTS, Client, Disk, run
from tests.pipeline.ledger.tally import count
from tests.pipeline.ledger.turns import Crash

SEEDS = 224
"""Of each kind of history, in the tests; 9 interleavings each. `interleave.py` plays as many as you like."""

PARTS = 8

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
    count(f"faults-{night.replace(' ', '-')}", schedules=requests * len(FAULTS))


@pytest.mark.parametrize("kind", FAULTS)
def test_a_vacuum_broken_off_at_every_request(kind: str) -> None:
    """Whatever it has done by then, the next vacuum and the next run put everything right."""

    def broken_off(at: int) -> int:
        disk, job = prepared("new generation")
        disk.sleep(2 * disk.grace)
        killed(disk, job, 18, "crash after")
        calm(disk, replace(job, run_id="again", inputs=FIRST))
        sweep(disk, 2)
        disk.sleep(2 * disk.grace)
        client = Client(disk, lambda n, _: kind if n == at else None, removes=True)
        with suppress(Crash, OSError):
            vacuum.vacuum(client, vacuum.Rules(1, disk.grace), act=True)
        disk.sleep(disk.grace)
        sweep(disk, 1)
        disk.sleep(disk.grace)
        sweep(disk, 1)
        readable(disk)
        left = [key for key in disk.objects if key.startswith(("data/", "quarantine/", "_manifests/", "_records/"))]
        commit = publish.head(Client(disk))
        assert commit is not None
        assert [key for key in disk.objects if key.startswith("_commits/")] == ["_commits/00000002.json"]
        table = publish.manifest_records(Client(disk), commit)
        named = {key for r in table for key in (r.file, r.quarantine_file, records.record_key(r.generation, r.piece)) if key}
        assert set(left) == named | {commit.manifest}
        calm(disk, replace(job, run_id="at last"))
        return client.requests

    requests = broken_off(0)
    assert requests > 30
    for at in range(1, requests + 1):
        broken_off(at)
    count(f"vacuum-{kind.replace(' ', '-')}", schedules=requests)


@pytest.mark.parametrize("night", ["empty table", "new and changed shards"])
def test_every_pair_of_crashes(night: str) -> None:
    requests = killed(*prepared(night), at=0, kind="none")
    schedules = 0
    for first in range(1, requests + 1):
        for first_kind in CRASHES:
            second = 0
            while True:  # until the second run ends before its crash
                second += 1
                schedules += 1
                disk, job = prepared(night)
                killed(disk, job, first, first_kind)
                made = killed(disk, replace(job, run_id="again"), second, CRASHES[second % 2])
                calm(disk, replace(job, run_id="at last"))
                if made < second:
                    break
    count(f"pairs-{night.replace(' ', '-')}", schedules=schedules)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_interleavings(part: int) -> None:
    tried = play(range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS))
    count(f"random-{part}", interleavings=tried)


def test_a_seed_stands_for_one_history() -> None:
    for seed in range(5):
        one, two = scenario(seed), scenario(seed)
        assert (one.requests, one.runs, list(one.published.values())) == (two.requests, two.runs, list(two.published.values()))


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
