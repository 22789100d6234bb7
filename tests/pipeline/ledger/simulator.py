"""A deterministic simulator for the ledger: a store in memory that loses answers, runs that are killed, and a judge.

`Disk` is what is stored. `Client` is one run's connection to it: each request is a point where the run can be killed, refused
or left without an answer, and where another run can take its turn (`Turns`). `run` is a run as the pipeline does it, through
the ledger's own functions, with an engine that writes plain lists of rows. Every commit and every removal is judged the moment
it happens (`judge`), which is all that a reader can ever see, since nothing stored may change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from pipeline.errors import Fenced, Incomplete
from pipeline.ledger import books, publish, records
from pipeline.ledger.pieces import Span
from pipeline.ledger.records import Record
from pipeline.ledger.store import Entry, Exists, Unknown
from tests.pipeline.ledger import judge
from tests.pipeline.ledger.fake_engine import Job, Piece, encode, pieces, spans
from tests.pipeline.ledger.judge import GRACE, Violation
from tests.pipeline.ledger.turns import Crash

T = TypeVar("T")
Fault = Callable[[int, str], str | None]
"""Number of the request and what it asks, such as "put data/x" -> one of FAULTS or None."""

CRASHES = ("crash before", "crash after")
FAULTS = (*CRASHES, "refused", "lost", "late")
"""Killed before or after the request works; refused (503); worked but the answer is lost; works after the answer was given up."""


@dataclass
class Disk:
    """All objects, and what the judge knows about runs."""

    objects: dict[str, bytes] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    """Key -> when it was written; the clock counts requests."""
    late: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    requests: int = 0
    runs: dict[str, tuple[Job, int]] = field(default_factory=dict)
    """run id -> its job, and the version it began on."""
    published: dict[str, int] = field(default_factory=dict)
    """run id -> the version it made."""
    tables: dict[int, list[Record]] = field(default_factory=dict)
    """Version -> its records, also of versions that were removed."""
    grace: int = GRACE
    """Of every vacuum of this table, in ticks."""
    removed_records: set[str] = field(default_factory=set)
    dropped: list[tuple[int, set[str]]] = field(default_factory=list)
    """When a version was removed, and the files that it named."""

    def write(self, key: str, data: bytes) -> None:
        """Store an object. Every key of the ledger is written once."""
        if key in self.objects:
            raise Violation(f"{key} was overwritten")
        self.objects[key] = data
        self.times[key] = self.requests
        if key.startswith("_commits/"):
            judge.commit(self, key)

    def remove(self, key: str) -> None:
        """Remove an object, as a vacuum does."""
        if key in self.objects:
            judge.removal(self, key)
            del self.objects[key], self.times[key]

    def sleep(self, ticks: int) -> None:
        """Time in which nobody works; what was given up works by then."""
        while self.late:
            self.arrive()
        self.requests += ticks

    def arrive(self) -> None:
        """Let requests that were given up work now, if it is their time."""
        self.requests += 1
        due = [act for when, act in self.late if when <= self.requests]
        self.late = [(when, act) for when, act in self.late if when > self.requests]
        for act in due:
            act()


class Client:
    """A `Store` as one run sees it."""

    def __init__(
        self, disk: Disk, fault: Fault = lambda *_: None, turn: Callable[[], None] = lambda: None, *, removes: bool = False
    ) -> None:
        self.disk, self._fault, self._turn, self._removes = disk, fault, turn, removes
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

    def entries(self, prefix: str) -> list[Entry]:
        def act() -> list[Entry]:
            keys = sorted(k for k in self.disk.objects if k.startswith(f"{prefix}/"))
            return [Entry(key, len(self.disk.objects[key]), self.disk.times[key]) for key in keys]

        return self._request(f"list {prefix}", act)

    def find_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        found = {}
        for key in keys:
            with suppress(FileNotFoundError):
                found[key] = self.get(key)
        return found

    def delete(self, key: str) -> None:
        if not self._removes:
            raise Violation(f"{key} was to be deleted by a run")
        self._request(f"delete {key}", lambda: self.disk.remove(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

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
            key = records.record_key(job.generation, todo.span.piece_id(index))
            if key in recorded and key not in client.disk.removed_records:
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
