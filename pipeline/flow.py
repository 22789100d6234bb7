"""START HERE. The whole job, from config to committed table:

    make_plan     check the config, the model's files and the input; find the pieces without a record
    execute       on each of those pieces: read -> prepare (tokenize, segment) -> encode (packs, head) -> write
    close         the books: every piece has exactly one record, rows in = rows out + quarantined + filtered
    publish       one create-only commit switches readers from version N to N+1

The four stages are methods of `pipeline.stages.Stages` and call the plain functions of `operators/`. Both engines run the
same stages: `engines.local` in this process, `engines.ray` on actors. Exactly-once is `pipeline.ledger`'s work.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from operators.attention.activation import activation_ratio
from pipeline.config import Config
from pipeline.errors import Held, Incomplete
from pipeline.holding import hold, published_pieces
from pipeline.ledger.books import close
from pipeline.ledger.publish import Commit, publish
from pipeline.ledger.records import Record
from pipeline.parity import findings
from pipeline.planning import Plan, draft, engine_of, make_plan
from pipeline.runtime import patience
from pipeline.speed import Clock, speed
from pipeline.stages import Outcome
from pipeline.stopping import Stop
from pipeline.stuck import Watchdog
from pipeline.table import count_duplicate_ids


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
    clock: Clock = field(default_factory=Clock)

    def add(self, outcome: Outcome) -> None:
        """Take one outcome into account."""
        if outcome.error:
            self.failures.append(f"{outcome.where}: {outcome.error}")
        if outcome.record:
            self.records[outcome.record.piece] = outcome.record
            self.encoded += outcome.encoded
            if outcome.encoded:
                self.clock.add(outcome.record.statistics.get("tokens", 0), outcome.record.rows_out)


def run(config: Config, watch: Watch | None = None) -> dict[str, Any]:
    """Run the job and return its report.

    Raises ConfigError (2), Incomplete (3), Held (4), Fenced (5) or Terminated (143), and nothing is published then; the same
    command goes on from the records that are there.
    """
    watch = watch or Silent()
    work = Work()
    with Stop() as stop:
        plan = make_plan(config)
        watch.planned(plan)
        started = time.perf_counter()
        with Watchdog(patience(config, plan.device.kind, plan.todos), stop, lambda: engine_of(config).workers()) as watchdog:
            for outcome in execute(plan, stop):
                watchdog.beat()
                work.add(outcome)
                watch.done(outcome)
        work.clock.seconds = time.perf_counter() - started
        stop.check()
        closed, commit = settle(plan, work)
    result = report(plan, work, closed, commit)
    if result["published"]:
        plan.recipe.store.put(f"_runs/{plan.recipe.run_id}/report.json", json.dumps(result, indent=1).encode())
    return result


def execute(plan: Plan, stop: Stop) -> Iterator[Outcome]:
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
    _gate(plan, closed)
    duplicates = (lambda final: count_duplicate_ids(plan.recipe.store, final)) if plan.config.input.id else (lambda final: 0)
    return closed, publish(plan.recipe.store, draft(plan, closed), count_duplicates=duplicates)


def _gate(plan: Plan, closed: list[Record]) -> None:
    """Hold the run back where new pieces are too far from the reference; Held says how to publish them all the same."""
    found = findings(closed)
    if all(f.within(plan.recipe.tolerance) for f in found.values()):
        return
    accepted = published_pieces(plan.recipe.store, plan.base, plan.generation)
    wrong = [
        f"task {task}: {f.apart} of {f.documents} documents are apart from the reference (mean similarity {f.similarity:.6f})"
        for task, f in findings(r for r in closed if r.piece not in accepted).items()
        if not f.within(plan.recipe.tolerance)
    ]
    if not wrong:
        return
    tolerance, run_id, output = plan.recipe.tolerance, plan.recipe.run_id, plan.config.output
    hold(
        plan.recipe.store,
        draft(plan, closed),
        has_ids=plan.config.input.id is not None,
        single_writer=output.single_writer,
        why="; ".join(wrong),
    )
    raise Held(
        f"{'; '.join(wrong)}. A share of {tolerance.apart} may be; how near each must be was settled when it was encoded. "
        f"Nothing is published; `tidemill publish {output.path} --accept {run_id}` publishes what is recorded",
        run_id,
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
        "statistics": {k: round(v, 3) for k, v in sorted(done.items()) if not k.startswith("parity:")},
        "output": plan.config.output.path,
        "books": commit.totals,
        "duplicate_ids": commit.duplicate_ids,
    }
