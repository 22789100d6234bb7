"""Random histories of a table for the simulator, each from one seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from pipeline.ledger import publish
from pipeline.ledger.publish import Commit
from tests.pipeline.ledger.fake_engine import Job, Source
from tests.pipeline.ledger.simulator import CRASHES, FAULTS, Client, Disk, Fault, Turns, Violation, run


def scenario(seed: int) -> Disk:
    """Three nights; in each two runs and a reader at the same time, with faults; then a calm run puts everything right."""
    rng = Random(seed)
    disk = Disk()
    keep = rng.random() < 0.5
    inputs = {f"s{n}": Source("v1", rng.randint(0, 5), rng.random() < 0.5) for n in range(rng.randint(1, 3))}
    generation, rival = "g1", "g1"
    for night in range(3):
        if night == 1:
            inputs = {**inputs, "new": Source("v1", 3, chained=True), "s0": Source("v2", 4, chained=False)}
        if night == 2:
            generation, rival = "g2", rng.choice(["g1", "g2", "g3"])
        turns = Turns(Random(rng.random()))
        for name, its_generation in (("a", generation), ("b", rival)):
            some = {key: source for key, source in inputs.items() if rng.random() < 0.7} or inputs
            job = Job(f"{night}{name}", its_generation, some, keep, rng.choice([0, 0, 0.2]))
            turns.add(name, _writer(disk, job, _random_faults(Random(rng.random())), Random(rng.random())))
        turns.add("reader", lambda turn: read(Client(disk, turn=turn), Random(0)))
        turns.run()
        calm(disk, Job(f"{night}c", generation, inputs, keep))
        calm(disk, Job(f"{night}d", generation, inputs, keep))
    return disk


def _writer(disk: Disk, job: Job, fault: Fault, rng: Random) -> Callable[[Callable[[], None]], object]:
    return lambda turn: run(Client(disk, fault, turn), job, rng)


def _random_faults(rng: Random) -> Fault:
    """Half of the runs are killed somewhere; the store never fails, sometimes, often, or most times that a run commits."""
    crash_at = rng.randint(1, 40) if rng.random() < 0.5 else 0
    crash = rng.choice(CRASHES)
    everywhere, at_commits = rng.choice([(0, 0), (0.05, 0.05), (0.2, 0.2), (0, 0.7)])

    def fault(request: int, what: str) -> str | None:
        if request == crash_at:
            return crash
        rate = at_commits if what.startswith("create _commits/") else everywhere
        return rng.choice(FAULTS[2:]) if rng.random() < rate else None

    return fault


def read(client: Client, rng: Random) -> None:
    """Open the newest version and an older one, again and again: every file is there and no version ever changes."""
    seen: dict[int, Commit] = {}
    for _ in range(5):
        newest = publish.head(client)
        if newest is None:
            continue
        for version in {newest.version, rng.randint(1, newest.version)}:
            commit = publish.read_commit(client, version)
            assert seen.setdefault(version, commit) == commit, f"version {version} changed"
            for record in publish.manifest_records(client, commit):
                client.get_many([key for key in (record.file, record.quarantine_file) if key])


def calm(disk: Disk, job: Job) -> None:
    """A run without faults must settle everything: the table is then this job's input, in its generation."""
    ending = run(Client(disk), job, Random(0))
    commit = publish.head(Client(disk))
    if ending not in {"published", "nothing to do"} or commit is None or commit.generation != job.generation:
        raise Violation(f"a calm run ended {ending!r} and left {commit}")
    table = {(r.shard, r.version) for r in publish.manifest_records(Client(disk), commit)}
    if not table >= {(key, s.version) for key, s in job.inputs.items()}:
        raise Violation(f"a calm run left {table}")
