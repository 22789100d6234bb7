"""START HERE. The whole job, from config to committed table:

    make_plan     check the config, the model's files and the input; find the pieces without a record
    execute       on each of those pieces: read -> prepare (tokenize, segment) -> encode (packs, head) -> write
    close         the books: every piece has exactly one record, rows in = rows out + quarantined + filtered
    publish       one create-only commit switches readers from version N to N+1
    follow        the table format that the config names is brought up to that version

The four stages are methods of `pipeline.stages.Stages` and call the plain functions of `operators/`. Both engines run the
same stages: `engines.local` in this process, `engines.ray` on actors. Exactly-once is `pipeline.ledger`'s work.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from operators.attention.activation import activation_ratio
from pipeline.config import Config
from pipeline.errors import Incomplete
from pipeline.following import follow
from pipeline.gates import check_gates
from pipeline.ledger.books import close, totals
from pipeline.ledger.publish import Commit, publish
from pipeline.ledger.records import Record
from pipeline.parity import findings
from pipeline.planning import Plan, draft, engine_of, make_plan
from pipeline.quality import PREFIX, plain_books, readable
from pipeline.remote import is_outage, plain
from pipeline.runtime import patience
from pipeline.speed import Clock, speed
from pipeline.stages import Outcome
from pipeline.stopping import Stop
from pipeline.stuck import Watchdog
from pipeline.table import count_duplicate_ids

ISOLATED = frozenset({"task_failed", "worker_crash", "timeout", "oom"})
"""Reasons of rows that were read well, and failed where they were worked on."""
OUTAGES = 8
"""Pieces in a row that failed with the store, each after all its attempts, before the run gives up."""


class Watch(Protocol):
    """Is told what happens while a job runs; the command line draws progress with it."""

    def planned(self, plan: Plan) -> None:
        """The plan stands; work begins."""

    def done(self, outcome: Outcome) -> None:
        """One more piece has a record, or failed."""


class Silent:
    """Watches without a word."""

    def planned(self, plan: Plan) -> None:
        """Nothing."""

    def done(self, outcome: Outcome) -> None:
        """Nothing."""


@dataclass
class Work:
    """What the engine did: records of the pieces it settled, and why others have none."""

    records: dict[str, Record] = field(default_factory=dict)
    encoded: int = 0
    failures: list[str] = field(default_factory=list)
    isolated: Counter[str] = field(default_factory=Counter)
    """Rows that failed for themselves, by reason; of pieces that this run encoded."""
    outages: int = 0
    """Outcomes in a row that failed with the store."""
    clock: Clock = field(default_factory=Clock)
    drift: dict[str, Any] = field(default_factory=dict)
    """What the gate found, once the books are closed."""

    def add(self, outcome: Outcome) -> None:
        """Take one outcome into account."""
        self.outages = self.outages + 1 if outcome.outage else 0
        if outcome.error:
            self.failures.append(f"{outcome.where}: {outcome.error}")
        if outcome.record:
            self.records[outcome.record.piece] = outcome.record
            self.encoded += outcome.encoded
            if outcome.encoded:
                self.isolated.update({k: n for k, n in outcome.record.quarantined.items() if k.split(":")[0] in ISOLATED})
                self.clock.add(outcome.record.statistics.get("tokens", 0), outcome.record.rows_out)


def run(config: Config, watch: Watch | None = None) -> dict[str, Any]:
    """Run the job and return its report.

    Raises ConfigError (2), Incomplete (3), Held (4), Fenced (5) or Terminated (143), and nothing is published then; the same
    command goes on from the records that are there.
    """
    watch = watch or Silent()
    work = Work()
    with Stop() as stop, _store_faults_in_words():
        plan = make_plan(config)
        watch.planned(plan)
        started = time.perf_counter()
        watchdog = Watchdog(patience(config, plan.device.kind, plan.todos), stop, lambda: engine_of(config).workers())
        with watchdog, closing(execute(plan, stop)) as outcomes:
            for outcome in outcomes:
                watchdog.beat()
                work.add(outcome)
                watch.done(outcome)
                if work.outages >= OUTAGES:
                    break
        work.clock.seconds = time.perf_counter() - started
        stop.check()
        closed, commit = settle(plan, work)
        followed = follow(config.output.format, plan.recipe.store, config.output_options, commit)
    result = report(plan, work, closed, commit) | followed
    if result["published"]:
        with suppress(Exception):  # the version stands, whether or not its report can be written
            plan.recipe.store.put(f"_runs/{plan.recipe.run_id}/report.json", json.dumps(result, indent=1).encode())
    return result


@contextmanager
def _store_faults_in_words() -> Iterator[None]:
    """Incomplete where a store goes on failing: the same command does the rest when it is back."""
    try:
        yield
    except Exception as error:
        if not is_outage(error) or isinstance(error, BrokenPipeError):  # that is whoever watched, who went away
            raise
        raise Incomplete(
            f"a store failed: {plain(error)}; what was recorded stays. Run the same command again: it goes on from there, and "
            "finds out whether a version was published"
        ) from error


def execute(plan: Plan, stop: Stop) -> Generator[Outcome, None, None]:
    """Run the stages over every span with work left; without any, no engine is started and no model loaded."""
    if not plan.todos:
        return
    plan.recipe.announce()
    engine = engine_of(plan.config)
    try:
        yield from engine.execute(plan.recipe, plan.place(engine), plan.todos, stop)
    finally:
        engine.shutdown()


def settle(plan: Plan, work: Work) -> tuple[list[Record], Commit]:
    """Close the books and publish: the records of the input, and the table's version. Incomplete names the pieces that failed."""
    records = list({**plan.known, **work.records}.values())
    try:
        closed = close(plan.source.spans, records)
    except Incomplete as error:
        failures = "".join(f"\n  {line}" for line in work.failures[:10])
        more = f"\n  ... and {len(work.failures) - 10} more" if len(work.failures) > 10 else ""
        raise Incomplete(f"{error}{failures}{more}") from error
    _check_quarantine(plan, closed)
    work.drift = check_gates(plan, closed)
    duplicates = (lambda final: count_duplicate_ids(plan.recipe.store, final)) if plan.config.input.id else (lambda final: 0)
    return closed, publish(plan.recipe.store, draft(plan, closed), count_duplicates=duplicates)


def _check_quarantine(plan: Plan, closed: list[Record]) -> None:
    """Incomplete where more of the input's rows are in quarantine than may be, or all of them."""
    books, most = totals(closed), plan.config.runtime.max_quarantine
    bad = sum(books.quarantined.values())
    if not bad or (bad < books.rows_in and bad <= most * books.rows_in):
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(books.quarantined.items(), key=lambda r: -r[1]))
    raise Incomplete(
        f"{bad} of {books.rows_in} rows ({bad / books.rows_in:.2%}) are in quarantine: {reasons}; runtime.max_quarantine is "
        f"{most:g}, and not all rows may be. Nothing is published; the entries are below {plan.config.output.path} in "
        f"quarantine/{plan.generation}. Mend the input, or raise the limit; to try rows again as they are, remove "
        f"_records/{plan.generation} first"
    )


def report(plan: Plan, work: Work, closed: list[Record], commit: Commit) -> dict[str, Any]:
    """What `run --json` prints: of this run, and the books of the table."""
    done: Counter[str] = Counter()  # adds floats as well
    for record in work.records.values():
        done.update(record.statistics)
    return {
        "run_id": plan.recipe.run_id,
        "version": commit.version,
        "generation": commit.generation,
        "published": commit.run_id == plan.recipe.run_id,
        "pieces": len(closed),
        "encoded": work.encoded,
        "reused": len(closed) - work.encoded,
        "tokens": int(work.clock.tokens),
        "seconds": round(work.clock.seconds, 3),
        "tokens_per_second": round(work.clock.tokens / work.clock.seconds, 1) if work.clock.seconds else 0.0,
        "speed": speed(work.clock, done, plan.config.runtime.price_per_hour),
        "activation_ratio": activation_ratio(done),
        "parity": {task: asdict(found) for task, found in findings(work.records.values()).items()},
        "isolated": dict(sorted(work.isolated.items())),
        "taken_apart": int(done["taken_apart"]),
        "begun_again": int(done["begun_again"]),
        "statistics": {k: round(v, 3) for k, v in sorted(done.items()) if not k.startswith(("parity:", PREFIX))},
        "quality": readable(done),
        "drift": work.drift,
        "output": plan.config.output.path,
        "books": plain_books(commit.totals),
        "duplicate_ids": commit.duplicate_ids,
    }
