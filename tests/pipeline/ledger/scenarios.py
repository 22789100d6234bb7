"""Random histories of a table for the simulator, each from one seed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random

from pipeline.errors import TidemillError
from pipeline.ledger import publish, vacuum, versions
from pipeline.ledger.publish import Commit
from tests.pipeline.ledger.fake_engine import Job, Source
from tests.pipeline.ledger.judge import GRACE, Violation
from tests.pipeline.ledger.simulator import CRASHES, FAULTS, Client, Disk, Fault, run
from tests.pipeline.ledger.turns import Turns

NIGHTS = 4
"""In a scenario; each is one interleaving."""

SHORT = 100
"""A grace that the runs of `hasty` outlast, though not the step from looking for their files to the commit."""

_SLEEPS = ("put data/", "create _records/", "list _commits", "list _records")
"""Requests before which a run of `hasty` may stand still."""


def scenario(seed: int) -> Disk:
    """Four nights; in each two runs and a reader at the same time, in most a vacuum or two and a rollback beside them, with
    faults; then a calm run puts everything right, and time passes."""
    rng = Random(seed)
    disk = Disk()
    keep = rng.random() < 0.5
    inputs = {f"s{n}": Source("v1", rng.randint(0, 5), rng.random() < 0.5) for n in range(rng.randint(1, 3))}
    generation, rival = "g1", "g1"
    for night in range(NIGHTS):
        began = disk.requests
        if night == 1:
            inputs = {**inputs, "new": Source("v1", 3, chained=True), "s0": Source("v2", 4, chained=False)}
        if night == 2:
            generation = "g2"
        if night >= 2:
            rival = rng.choice(["g1", "g2", "g3"])
        turns = Turns(Random(rng.random()))
        for name, its_generation in (("a", generation), ("b", rival)):
            some = {key: source for key, source in inputs.items() if rng.random() < 0.7} or inputs
            job = Job(f"{night}{name}", its_generation, some, keep, rng.choice([0, 0, 0.2]))
            turns.add(name, _writer(disk, job, _random_faults(Random(rng.random())), Random(rng.random())))
        turns.add("reader", _reader(disk, Random(rng.random())))
        for name in range(rng.choice([0, 1, 1, 2])):
            turns.add(f"vacuum{name}", _vacuum(disk, _random_faults(Random(rng.random())), rng.randint(1, 3)))
        if rng.random() < 0.4:
            turns.add("rollback", _rollback(disk, _random_faults(Random(rng.random())), Random(rng.random())))
        turns.run()
        assert disk.requests - began < GRACE, "the grace is too short for this night"
        if rng.random() < 0.6:
            calm(disk, Job(f"{night}c", generation, inputs, keep))
        disk.sleep(rng.choice([0, GRACE // 2, GRACE, 3 * GRACE]))
        if rng.random() < 0.5:
            sweep(disk, rng.randint(1, 3))
    calm(disk, Job("at last", generation, inputs, keep))
    readable(disk)
    return disk


def hasty(seed: int) -> Disk:
    """Runs that take longer than the grace, beside a vacuum that never rests: they may fail, but publish nothing wrong."""
    rng = Random(seed)
    disk = Disk(grace=SHORT)
    inputs = {f"s{n}": Source("v1", 5, chained=n % 2 == 0) for n in range(rng.randint(2, 4))}
    for night in range(NIGHTS):
        generation = rng.choice(["g1", "g2"])
        turns = Turns(Random(rng.random()))
        for name in "ab":
            job = Job(f"{night}{name}", generation, inputs, True)
            turns.add(name, _sleeper(disk, job, Random(rng.random())))
        turns.add("vacuum", _vacuum(disk, lambda *_: None, rng.randint(1, 2), times=12))
        turns.run()
        disk.sleep(rng.choice([0, SHORT // 2, SHORT, 2 * SHORT]))
    job = Job("in the end", "g1", inputs, True)
    if run(Client(disk), job, Random(0)) == "incomplete":
        sweep(disk, 1)
    calm(disk, Job("at last", "g1", inputs, True))
    readable(disk)
    return disk


def race(seed: int) -> Disk:
    """Three runs of different shards that commit at the same time, on a store that loses every other answer to a commit."""
    rng = Random(seed)
    disk = Disk()
    turns = Turns(Random(rng.random()))

    def fault(_: int, what: str) -> str | None:
        return rng.choice(["lost", "late", None, None]) if what.startswith("create _commits/") else None

    for name in "abc":
        job = Job(name, "g1", {f"s{name}": Source("v1", 2, chained=False)}, keep_removed=True)
        turns.add(name, _writer(disk, job, fault, Random(rng.random())))
    turns.run()
    calm(disk, Job("at last", "g1", {f"s{name}": Source("v1", 2, chained=False) for name in "abc"}, True))
    return disk


def sweep(disk: Disk, versions: int) -> None:
    """A vacuum by itself; what it would do is what it does."""
    client, rules = Client(disk, removes=True), vacuum.Rules(versions, disk.grace)
    planned = vacuum.vacuum(client, rules, act=False)
    done = vacuum.vacuum(client, rules, act=True)
    for kind in ("versions", "records", "files", "waiting"):
        if getattr(planned, kind) != getattr(done, kind):
            raise Violation(f"a dry run names other {kind}")


def readable(disk: Disk) -> None:
    """Every version that is there can be read, whole."""
    client = Client(disk)
    for key in client.list("_commits"):
        commit = publish.read_commit(client, int(key[-13:-5]))
        for record in publish.manifest_records(client, commit):
            client.get_many([name for name in (record.file, record.quarantine_file) if name])


def _vacuum(disk: Disk, fault: Fault, versions: int, times: int = 1) -> Callable[[Callable[[], None]], object]:
    def act(turn: Callable[[], None]) -> None:
        with suppress(OSError, TidemillError):
            for _ in range(times):
                vacuum.vacuum(Client(disk, fault, turn, removes=True), vacuum.Rules(versions, disk.grace), act=True)

    return act


def _rollback(disk: Disk, fault: Fault, rng: Random) -> Callable[[Callable[[], None]], object]:
    def act(turn: Callable[[], None]) -> None:
        client = Client(disk, fault, turn)
        with suppress(OSError, TidemillError):
            newest = publish.head(client)
            if newest:
                versions.rollback(client, rng.randint(1, newest.version))

    return act


def _writer(disk: Disk, job: Job, fault: Fault, rng: Random) -> Callable[[Callable[[], None]], object]:
    return lambda turn: run(Client(disk, fault, turn), job, rng)


def _sleeper(disk: Disk, job: Job, rng: Random) -> Callable[[Callable[[], None]], object]:
    """A writer that stands still for some graces, now and then."""
    faults = _random_faults(rng)

    def act(turn: Callable[[], None]) -> object:
        def fault(request: int, what: str) -> str | None:
            if what.startswith(_SLEEPS) and rng.random() < 0.1:
                for _ in range(rng.randint(1, 4) * SHORT):
                    turn()
            return faults(request, what)

        return run(Client(disk, fault, turn), job, rng)

    return act


def _reader(disk: Disk, rng: Random) -> Callable[[Callable[[], None]], object]:
    return lambda turn: read(Client(disk, turn=turn), rng)


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
            try:
                commit = publish.read_commit(client, version)
            except FileNotFoundError:
                assert version < newest.version, "the newest version is gone"
                continue
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


HISTORIES: list[tuple[Callable[[int], Disk], int]] = [(scenario, NIGHTS), (hasty, NIGHTS), (race, 1)]
"""Kinds of history, and how many interleavings each holds."""
