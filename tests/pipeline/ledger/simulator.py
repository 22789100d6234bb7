"""A deterministic simulator for the ledger: a store in memory that loses answers, runs that are killed, and a judge.

`Disk` is what is stored. `Client` is one run's connection to it: each request is a point where the run can be killed, refused
or left without an answer, and where another run can take its turn (`Turns`). `run` is a run as the pipeline does it, through
the ledger's own functions, with an engine that writes plain lists of rows. Every commit is judged the moment it appears, which
is all that a reader can ever see, since nothing stored may change.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from pipeline.errors import Fenced, Incomplete
from pipeline.ledger import books, publish, records
from pipeline.ledger.pieces import Span
from pipeline.ledger.records import Record
from pipeline.ledger.store import Exists, Unknown
from tests.pipeline.ledger.fake_engine import Job, Piece, encode, is_bad, pieces, spans

T = TypeVar("T")
Fault = Callable[[int, str], str | None]
"""Number of the request and what it asks, such as "put data/x" -> one of FAULTS or None."""

CRASHES = ("crash before", "crash after")
FAULTS = (*CRASHES, "refused", "lost", "late")
"""Killed before or after the request works; refused (503); worked but the answer is lost; works after the answer was given up."""


class Crash(BaseException):
    """The process is killed at this point."""


class Violation(AssertionError):
    """The protocol broke a promise."""


@dataclass
class Disk:
    """All objects, and what the judge knows about runs."""

    objects: dict[str, bytes] = field(default_factory=dict)
    late: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    requests: int = 0
    runs: dict[str, tuple[Job, int]] = field(default_factory=dict)
    """run id -> its job, and the version it began on."""
    published: dict[str, int] = field(default_factory=dict)
    """run id -> the version it made."""

    def write(self, key: str, data: bytes) -> None:
        """Store an object. Every key of the ledger is written once."""
        if key in self.objects:
            raise Violation(f"{key} was overwritten")
        self.objects[key] = data
        if key.startswith("_commits/"):
            judge(self, key)

    def arrive(self) -> None:
        """Let requests that were given up work now, if it is their time."""
        self.requests += 1
        due = [act for when, act in self.late if when <= self.requests]
        self.late = [(when, act) for when, act in self.late if when > self.requests]
        for act in due:
            act()


class Client:
    """A `Store` as one run sees it."""

    def __init__(self, disk: Disk, fault: Fault = lambda *_: None, turn: Callable[[], None] = lambda: None) -> None:
        self.disk, self._fault, self._turn = disk, fault, turn
        self.requests = 0

    def put(self, key: str, data: bytes) -> None:
        self._request(f"put {key}", lambda: self.disk.write(key, data))

    def create(self, key: str, data: bytes) -> None:
        def act() -> None:
            if key in self.disk.objects:
                raise Exists(key)
            self.disk.write(key, data)

        self._request(f"create {key}", act, Unknown)

    def get(self, key: str) -> bytes:
        def act() -> bytes:
            if key not in self.disk.objects:
                raise FileNotFoundError(key)
            return self.disk.objects[key]

        return self._request(f"get {key}", act)

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def list(self, prefix: str) -> list[str]:
        return self._request(f"list {prefix}", lambda: sorted(k for k in self.disk.objects if k.startswith(f"{prefix}/")))

    def delete(self, key: str) -> None:
        raise Violation(f"{key} was to be deleted")

    def url(self, key: str) -> str:
        return f"simulated://{key}"

    def pause(self, _: float) -> None:
        """Time in which others go on."""
        for _ in range(self.requests % 8):
            self._turn()

    def _request(self, what: str, act: Callable[[], T], lost: type[OSError] = OSError) -> T:
        self._turn()
        self.requests += 1
        fault = self._fault(self.requests, what)
        self.disk.arrive()
        if fault == "crash before":
            raise Crash
        if fault == "refused":
            raise lost("503")
        if fault == "late":
            self.disk.late.append((self.disk.requests + 1 + self.requests % 7, lambda: _quietly(act)))
            raise lost("timeout")
        result = act()
        if fault == "crash after":
            raise Crash
        if fault == "lost":
            raise lost("timeout")
        return result


def _quietly(act: Callable[[], object]) -> None:
    """Nobody waits for the answer any more."""
    try:
        act()
    except (Exists, FileNotFoundError):
        return


def run(client: Client, job: Job, rng: Random) -> str:
    """One run. How it ended: published, nothing to do, incomplete, fenced or error; raises Crash."""
    try:
        ending = _run(client, job, rng)
    except Incomplete:
        ending = "incomplete"
    except Fenced:
        ending = "fenced"
    except OSError:
        return "error"
    if (ending == "published") != (job.run_id in client.disk.published):
        raise Violation(f"{job.run_id} reports {ending!r}, its version is {client.disk.published.get(job.run_id)}")
    return ending


def _run(client: Client, job: Job, rng: Random) -> str:
    recorded = {key for key in client.disk.objects if key.startswith("_records/")}
    base = publish.head(client)
    version = base.version if base else 0
    client.disk.runs[job.run_id] = (job, version)
    known = {r.piece: r for r in publish.current_records(client, base, job.generation)}
    known |= records.read_records(client, job.generation, known)
    work = spans(job.inputs)
    for todo in records.find_work(work, known):
        for index, start, stop, last in pieces(todo.span):
            if index in todo.done or rng.random() < job.loses:
                continue
            if records.record_key(job.generation, todo.span.piece_id(index)) in recorded:
                raise Violation(f"{job.run_id} does piece {index} of {todo.span.shard.key} again")
            try:
                record = settle(client, job, todo.span, (index, start, stop, last))
            except OSError:
                continue  # the piece stays without record, as when a worker fails
            known[record.piece] = record
    draft = publish.Draft(
        run_id=job.run_id,
        generation=job.generation,
        fingerprint={},
        pins={},
        schema="",
        records=books.close(work, known.values()),
        shards=frozenset(job.inputs),
        keep_removed=job.keep_removed,
        base=version,
    )
    commit = publish.publish(client, draft, count_duplicates=lambda _: 0, pause=client.pause)
    return "published" if commit.run_id == job.run_id else "nothing to do"


def settle(client: Client, job: Job, span: Span, piece: Piece) -> Record:
    """Write one piece's files and then its record."""
    files, record = encode(job, span, piece)
    for key, data in files.items():
        client.put(key, data)
    return records.write_record(client, record, pause=client.pause)


def judge(disk: Disk, key: str) -> None:
    """Raise Violation unless the commit that just appeared keeps every promise."""
    try:
        _judge(disk, key)
    except (AssertionError, FileNotFoundError, KeyError) as error:
        raise Violation(f"{key}: {error!r}") from error


def _judge(disk: Disk, key: str) -> None:
    version = int(key.removeprefix("_commits/").removesuffix(".json"))
    quiet = Client(Disk(objects=disk.objects))
    commit = publish.read_commit(quiet, version)
    table = publish.manifest_records(quiet, commit)
    before = publish.read_commit(quiet, version - 1) if version > 1 else None
    job, base = disk.runs[commit.run_id]
    assert commit.run_id not in disk.published, "one run published twice"
    disk.published[commit.run_id] = version
    assert commit.parent == (hashlib.sha256(quiet.get(publish.commit_key(version - 1))).hexdigest() if before else None), "parent"
    assert commit.generation == job.generation, "generation"
    if before and before.generation != commit.generation:
        assert base == version - 1, "a generation was switched by a run that had not seen the one before"
    shards = {r.shard for r in table}
    if before and before.generation == commit.generation and job.keep_removed:
        assert shards >= {r.shard for r in publish.manifest_records(quiet, before)}, "shards went missing"
    assert shards >= set(job.inputs) if job.keep_removed else shards == set(job.inputs), "not the run's input"
    _judge_rows(disk, quiet, table, commit.generation)
    assert commit.totals["rows_in"] == commit.totals["rows_out"] + sum(commit.totals["quarantined"].values()), "totals"


def _judge_rows(disk: Disk, quiet: Client, table: list[Record], generation: str) -> None:
    """Every row of every shard exactly once, out or in quarantine, all of one generation, as the records say."""
    sources = {(key, s.version): s for job, _ in disk.runs.values() for key, s in job.inputs.items()}
    seen: dict[str, list[int]] = {}
    versions: dict[str, set[str]] = {}
    for record in table:
        assert records.read_record(quiet, generation, record.piece) == record, "the manifest does not hold the piece's record"
        rows = seen.setdefault(record.shard, [])
        versions.setdefault(record.shard, set()).add(record.version)
        for name in filter(None, (record.file, record.quarantine_file)):
            content_generation, *content = json.loads(quiet.get(name))
            assert content_generation == generation, "mixed generations"
            assert all(is_bad(record.shard, record.version, row) == (name == record.quarantine_file) for row in content), (
                "wrong file"
            )
            rows += content
    for shard, rows in seen.items():
        assert len(versions[shard]) == 1, f"two versions of {shard}"
        source = sources[shard, versions[shard].pop()]
        assert sorted(rows) == list(range(source.rows)), f"rows of {shard}: {sorted(rows)}"


class Turns:
    """Exactly one actor runs between two requests; `rng` says who is next."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._back = threading.Semaphore(0)
        self._actors: dict[str, tuple[threading.Semaphore, Callable[[], object]]] = {}
        self._errors: list[BaseException] = []

    def add(self, name: str, act: Callable[[Callable[[], None]], object]) -> None:
        """`act` is given the function to call at each of its requests."""
        mine = threading.Semaphore(0)

        def turn() -> None:
            self._back.release()
            mine.acquire()

        self._actors[name] = (mine, lambda: act(turn))

    def run(self) -> None:
        """Run all actors to their ends; raises the first error of any, but not Crash."""
        threads = [threading.Thread(target=self._live, args=(name,)) for name in self._actors]
        for thread in threads:
            thread.start()
        while self._actors:
            mine, _ = self._actors[self._rng.choice(sorted(self._actors))]
            mine.release()
            self._back.acquire()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _live(self, name: str) -> None:
        mine, act = self._actors[name]
        mine.acquire()
        try:
            act()
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 -- raised again by run()
            self._errors.append(error)
        finally:
            del self._actors[name]
            self._back.release()
