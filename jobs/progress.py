"""Rich progress of a run on standard error: documents, tokens/s, segments, quarantine, time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.wording import message_lines

if TYPE_CHECKING:
    from pipeline.planning import Plan
    from pipeline.stages import Outcome


class Progress:
    """Watches a run (`pipeline.flow.Watch`). On a terminal it draws a bar, elsewhere it logs a line now and then."""

    _LOG_EVERY_SECONDS = 30.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._counts = {"documents": 0, "segments": 0, "tokens": 0, "quarantined": 0}
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def planned(self, plan: Plan) -> None:
        """Say what is about to happen."""
        from pipeline.notes import describe  # torch comes with it, and `tidemill --help` should not wait for that

        for line in describe(plan):
            self._console.print(message_lines(line), markup=False, highlight=False)
        self._started = self._logged = time.monotonic()
        total = sum(todo.span.weight for todo in plan.todos)
        self._weights = {(t.span.shard.key, t.span.start): t.span.weight for t in plan.todos}
        self._task = self._bar.add_task("encoding", total=total or 1, counts="starting", completed=0 if plan.todos else 1)

    def done(self, outcome: Outcome) -> None:
        """Count one piece."""
        if outcome.error:
            self._console.print(message_lines(f"no record for {outcome.where}: {outcome.error}"), markup=False)
        if not outcome.record or self._task is None:
            return
        record = outcome.record
        self._counts["documents"] += record.rows_out
        self._counts["quarantined"] += sum(record.quarantined.values())
        for name in ("segments", "tokens"):
            self._counts[name] += int(record.statistics.get(name, 0))
        seconds = max(time.monotonic() - self._started, 1e-9)
        text = (
            f"{self._counts['documents']} documents, {self._counts['segments']} segments, "
            f"{self._counts['tokens'] / seconds:.0f} tokens/s, {self._counts['quarantined']} quarantined"
        )
        # A chain tells the share of its span only at its end.
        weight = self._weights.get((record.shard, record.span_start), 0) if record.last else 0
        self._bar.update(self._task, advance=weight, counts=text)
        if not self._console.is_terminal and time.monotonic() - self._logged > self._LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            self._console.print(text, markup=False, highlight=False)
