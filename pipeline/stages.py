"""What both engines run on each piece: read -> prepare -> encode -> write.

`Stages` is built on the worker from a picklable `Recipe`. Every stage takes an item and hands on an item: a `Batch` on its
way, or the `Outcome` of a piece that is settled (recorded already, or failed), which the stages behind let through.

A piece is marked before it is read. One that was begun before, again and again, and has no record is suspicious: its stages
run in a process beside the worker, and rows that kill that are set aside (`pipeline.isolation`). So is a piece whose stage
raises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from operators.devices import is_device_lost
from operators.schema import N_TOKENS, TRUNCATED
from pipeline import batch as wire
from pipeline import quality, sink
from pipeline.batch import Batch
from pipeline.errors import TidemillError
from pipeline.guard import Trouble
from pipeline.isolation import Isolation
from pipeline.ledger.attempts import begin
from pipeline.ledger.pieces import Todo
from pipeline.ledger.records import Record, from_json, read_record, to_json
from pipeline.limits import Pace
from pipeline.recipe import Recipe
from pipeline.remote import is_outage, plain
from pipeline.source.reading import unreadable
from pipeline.steps import Steps
from pipeline.watchdog import die, watched
from pipeline.wording import describe, printable, without_secrets

_SUSPICIOUS = 2
"""A piece that was begun so many times before without a record."""


@dataclass(frozen=True)
class Outcome:
    """What became of one piece: its record, or why it has none (`error`); a stopped span has neither."""

    where: str
    record: Record | None = None
    encoded: bool = False
    """This run's encoder did the work, and its record won."""
    error: str | None = None
    outage: bool = False
    """The store failed, and not the piece."""


Item = Batch | Outcome


def to_block(item: Item) -> pa.Table:
    """An item as one row, for the way between Ray's workers."""
    if isinstance(item, Batch):
        return wire.to_block(item)
    plain = {**asdict(item), "record": to_json(item.record).decode() if item.record else None}
    return wire.block({"outcome": plain}, pa.py_buffer(b""), pa.py_buffer(b""))


def from_block(block: pa.Table) -> list[Item]:
    """The items in a block made by `to_block`."""
    items: list[Item] = []
    for i in range(block.num_rows):
        header = json.loads(block["header"][i].as_py())
        if "outcome" in header:
            plain = header["outcome"]
            record = from_json(plain["record"].encode(), "record") if plain["record"] else None
            items.append(Outcome(**{**plain, "record": record}))
        else:
            items += wire.from_block(block.slice(i, 1))
    return items


class Stages:
    """The stages of one job on one worker. `threads`: torch's threads on a CPU worker, 0 for its own choice.

    `restarted`: in place of a worker that died in this run, which makes its pieces suspicious one attempt earlier."""

    def __init__(self, recipe: Recipe, threads: int, *, restarted: bool = False) -> None:
        self._recipe = recipe
        self._suspicious = _SUSPICIOUS - restarted
        self._steps = Steps(recipe, threads)
        self._isolation = Isolation(recipe, threads)
        self._paces = {stage: Pace(recipe.limits) for stage in ("prepare", "encode")}

    def load(self) -> None:
        """Load the models; only workers that encode do."""
        self._steps.load()

    def close(self) -> None:
        """End what runs beside this worker."""
        self._isolation.rest()

    def read(self, todo: Todo) -> Iterator[Item]:
        """The pieces of a span that have no record yet, in order; ends early where a stop was asked for."""
        where = f"{todo.span.shard.label} from {todo.span.start}"
        try:
            yield from self._read(todo, where)
        except Exception as error:  # noqa: BLE001 -- a piece that fails is left without record and named at the end (exit 3)
            yield _failed(where, error)

    def begin(self, item: Item) -> Item:
        """Mark a piece that comes from another worker: that one does not die of what this one does."""
        if isinstance(item, Outcome):
            return item
        try:
            return self._begun(item, self._begin(item.id, "encode-"))
        except Exception as error:  # noqa: BLE001 -- as in read
            return _failed(_where(item), error)

    def prepare(self, item: Item) -> Item:
        """Tokenize and measure windows: adds ids and counts, takes the text away, sets aside what is too long."""
        return self._stage("prepare", item)

    def encode(self, item: Item) -> Item:
        """Run the encoders and heads: the documents become the rows of the output table."""
        return self._stage("encode", item)

    def write(self, item: Item) -> Outcome:
        """Put the files and the record."""
        if isinstance(item, Outcome):
            return item
        try:
            return self._write(item)
        except Exception as error:  # noqa: BLE001 -- as in read
            return _failed(_where(item), error)

    def _read(self, todo: Todo, where: str) -> Iterator[Item]:
        span, done, batches = todo.span, set(todo.done), None
        while not self._recipe.stop_asked():
            index = next(i for i in range(len(done) + 1) if i not in done)
            piece = span.piece_id(index)
            # Another run, or an attempt of ours that died after its record, may have settled the piece meanwhile.
            record = read_record(self._recipe.store, self._recipe.generation, piece)
            if record and record.last:
                yield Outcome(where, record)
                return
            attempt = 0 if record else self._begin(piece)
            if attempt >= self._suspicious:
                batch, batches = self._read_beside(Todo(span, frozenset(done)), index), None
            else:
                batches = batches or self._steps.read(Todo(span, frozenset(done)))
                with watched(f"reading {where}", self._recipe.limits.reading(span.shard.size), self._memory):
                    batch = next(batches, None)
            if batch is None:
                return
            done.add(index)
            read = replace(batch, statistics={**batch.statistics, "reads": 1.0})
            yield Outcome(where, record) if record else self._begun(read, attempt)
            if batch.last:
                return
        yield Outcome(where)

    def _begin(self, piece: str, stage: str = "") -> int:
        return begin(self._recipe.store, self._recipe.generation, piece, self._recipe.run_id, stage)

    def _begun(self, batch: Batch, attempt: int) -> Batch:
        again = {"begun_again": 1.0} if attempt else {}
        return replace(batch, attempt=attempt, statistics={**batch.statistics, **again})

    def _read_beside(self, todo: Todo, index: int) -> Batch | None:
        """The next piece of a span, read in a process beside this one; where that dies, the rest of the span is unreadable."""
        try:
            return self._isolation.read(todo)
        except Trouble as trouble:
            # A store that hangs, or fails, says nothing about the shard; and pieces behind this one were read before.
            if not trouble.died or trouble.reason == "timeout" or any(i > index for i in todo.done):
                raise TidemillError(f"reading fails in a process of its own: {trouble}; run the same command again") from trouble
            start = todo.span.start
            if index:
                before = read_record(self._recipe.store, self._recipe.generation, todo.span.piece_id(index - 1))
                if before is None:
                    raise TidemillError(
                        "the piece before one that cannot be read has no record yet; run the command again"
                    ) from trouble
                start = before.stop
            detail = f"reading it ends the process: {trouble.reason}, {trouble.detail}"
            batch = unreadable(todo.span, self._recipe.read, index, start, todo.span.stop or start, detail)
            return replace(batch, statistics={**batch.statistics, "taken_apart": 1.0})

    def _stage(self, stage: str, item: Item) -> Item:
        if isinstance(item, Outcome):
            return item
        try:
            if item.attempt < self._suspicious:
                try:
                    return self._plainly(stage, item)
                except (TidemillError, OSError):
                    raise
                except Exception as error:  # noqa: BLE001 -- any row may do it: find out which
                    if is_device_lost(error):
                        die(f"the device is lost ({describe(error)})")
            return self._apart(stage, item)
        except Exception as error:  # noqa: BLE001 -- as in read
            return _failed(_where(item), error)

    def _plainly(self, stage: str, batch: Batch) -> Batch:
        """One stage in this process, which may die of it."""
        watch = self._watch(stage, batch)
        if stage == "encode":
            self._isolation.rest()
            return self._steps.encode(batch, watch)
        with watch:
            return self._steps.prepare(batch)

    def _apart(self, stage: str, batch: Batch) -> Batch:
        if stage == "prepare":
            return self._isolation(stage, batch, self._paces[stage])
        with self._steps.pause():
            return self._isolation(stage, batch, self._paces[stage])

    @contextmanager
    def _watch(self, stage: str, batch: Batch) -> Iterator[None]:
        pace, size, started = self._paces[stage], batch.documents.nbytes, time.perf_counter()
        with watched(f"to {stage} {_where(batch)}", pace.limit(size), self._memory):
            yield
        pace.add(size, time.perf_counter() - started)

    @property
    def _memory(self) -> int:
        return self._recipe.limits.worker_memory()

    def _write(self, batch: Batch) -> Outcome:
        counts = {
            "truncated": pc.sum(batch.documents[TRUNCATED]).as_py() or 0,
            "body_tokens": pc.sum(batch.documents[N_TOKENS]).as_py() or 0,
        }
        found = quality.statistics(batch.documents, [task.name for task in self._recipe.tasks])
        mine = replace(batch, statistics={**batch.statistics, **counts, **found})
        record, won = sink.write(self._recipe.store, self._recipe.generation, mine)
        return Outcome(_where(batch), record, encoded=won)


def _where(batch: Batch) -> str:
    return f"{batch.span.shard.label} from {batch.start} to {batch.stop}"


def _failed(where: str, error: Exception) -> Outcome:
    outage = is_outage(error)
    what = printable(without_secrets(plain(error))) if outage else describe(error)
    return Outcome(where, error=what, outage=outage)
