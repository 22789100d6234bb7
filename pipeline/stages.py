"""What both engines run on each piece: read -> prepare -> encode -> write.

`Stages` is built on the worker from a picklable `Recipe`. Every stage takes an item and hands on an item: a `Batch` on its
way, or the `Outcome` of a piece that is settled (recorded already, or failed), which the stages behind let through.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.schema import COUNTS, ID, N_TOKENS, ROW, SHARD, TEXT, TRUNCATED
from pipeline import batch as wire
from pipeline import quarantine, sink
from pipeline.batch import Batch
from pipeline.errors import TidemillError
from pipeline.ledger.pieces import Todo
from pipeline.ledger.records import Record, from_json, read_record, to_json
from pipeline.passes import Passes
from pipeline.preparing import Preparer, count_column
from pipeline.recipe import Recipe
from pipeline.source.reading import read_span


@dataclass(frozen=True)
class Outcome:
    """What became of one piece: its record, or why it has none (`error`); a stopped span has neither."""

    where: str
    record: Record | None = None
    encoded: bool = False
    """This run's encoder did the work, and its record won."""
    error: str | None = None


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
    """The stages of one job on one worker. `threads`: torch's threads on a CPU worker, 0 for its own choice."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self._recipe = recipe
        self._threads = threads
        self._preparer = Preparer(recipe)
        self._passes: Passes | None = None

    def load(self) -> None:
        """Load the models; only workers that encode do. Incomplete where their files are not those of the plan."""
        try:
            self._passes = Passes(self._recipe, self._preparer, self._threads)
        except Exception:
            self._preparer.check_unchanged()  # where that is why, it says so
            raise

    def read(self, todo: Todo) -> Iterator[Item]:
        """The pieces of a span that have no record yet, in order; ends early where a stop was asked for."""
        where = f"{todo.span.shard.key} from {todo.span.start}"
        try:
            for batch in read_span(todo, self._recipe.read):
                if self._recipe.stop_asked():
                    yield Outcome(where)
                    return
                # Another run, or an attempt of ours that died after its record, may have settled the piece meanwhile.
                record = read_record(self._recipe.store, self._recipe.generation, batch.id)
                yield Outcome(where, record) if record else replace(batch, statistics={**batch.statistics, "reads": 1})
        except Exception as error:  # noqa: BLE001 -- a piece that fails is left without record and named at the end (exit 3)
            yield Outcome(where, error=_describe(error))

    def prepare(self, item: Item) -> Item:
        """Tokenize and measure windows: adds ids and counts, takes the text away, sets aside what is too long."""
        return self._guard(item, self._prepare)

    def encode(self, item: Item) -> Item:
        """Run the encoders and heads: the documents become the rows of the output table."""
        return self._guard(item, self._encode)

    def write(self, item: Item) -> Outcome:
        """Put the files and the record."""
        outcome = self._guard(item, self._write)
        assert isinstance(outcome, Outcome)
        return outcome

    def _guard(self, item: Item, stage: Callable[[Batch], Item]) -> Item:
        if isinstance(item, Outcome):
            return item
        try:
            return stage(item)
        except Exception as error:  # noqa: BLE001 -- as in read
            return Outcome(_where(item), error=_describe(error))

    def _prepare(self, batch: Batch) -> Batch:
        started = time.perf_counter()
        batch = _set_aside(batch, self._preparer.unfit(batch.documents))
        text_bytes = pc.sum(pc.binary_length(batch.documents[TEXT])).as_py() or 0
        documents, too_long = self._preparer.prepare(batch.documents)
        counts = {
            "text_bytes": text_bytes,
            "tokenizations": len(self._recipe.tokenizations),
            "prepare_seconds": time.perf_counter() - started,
        }
        return _set_aside(replace(batch, documents=documents, statistics={**batch.statistics, **counts}), too_long)

    def _encode(self, batch: Batch) -> Batch:
        if self._passes is None:
            raise RuntimeError("load() comes before encode()")
        sample = self._recipe.sample_of(batch.span.weight) if batch.index == 0 else 0
        results = self._passes(batch.documents, sample=sample)
        documents = batch.documents
        for name, values in results.values.items():
            documents = documents.append_column(f"__result_{name}", values)
        batch = replace(batch, documents=documents, statistics={**batch.statistics, **results.statistics})
        batch = _set_aside(batch, results.failed)
        return replace(batch, documents=self._output(batch))

    def _output(self, batch: Batch) -> pa.Table:
        """The columns of the output table, in its order and with its exact types."""
        documents, views = batch.documents, self._recipe.views
        made = {SHARD: sink.shard_column(batch.span.shard.key, documents.num_rows)}
        for task in self._recipe.tasks:
            made[task.name] = documents[f"__result_{task.name}"]
            if task.view != views[0]:
                made |= {f"{task.name}_{count}": documents[count_column(views.index(task.view), count)] for count in COUNTS}
        made |= {count: documents[count_column(0, count)] for count in COUNTS}
        columns = [made[f.name] if f.name in made else documents[f.name] for f in self._recipe.schema]
        return pa.table(
            [c.cast(f.type) if c.type != f.type else c for c, f in zip(columns, self._recipe.schema, strict=True)],
            schema=self._recipe.schema,
        )

    def _write(self, batch: Batch) -> Outcome:
        counts = {
            "truncated": pc.sum(batch.documents[TRUNCATED]).as_py() or 0,
            "body_tokens": pc.sum(batch.documents[N_TOKENS]).as_py() or 0,
        }
        mine = replace(batch, statistics={**batch.statistics, **counts})
        record, won = sink.write(self._recipe.store, self._recipe.generation, mine)
        return Outcome(_where(batch), record, encoded=won)


def _set_aside(batch: Batch, reasons: dict[int, tuple[str, str]]) -> Batch:
    """Move the rows numbered in `reasons` (row -> reason, detail) to the quarantine."""
    if not reasons:
        return batch
    rows = sorted(reasons)
    taken = batch.documents.select([ROW, ID]).take(rows).to_pylist()
    entries = [quarantine.Entry(t[ROW], t[ID], *reasons[r]) for t, r in zip(taken, rows, strict=True)]
    kept = np.ones(batch.documents.num_rows, bool)
    kept[rows] = False
    table = pa.concat_tables([batch.quarantine, quarantine.table(batch.span.shard.key, entries)])
    return replace(batch, documents=batch.documents.filter(pa.array(kept)), quarantine=table)


def _where(batch: Batch) -> str:
    return f"{batch.span.shard.key} from {batch.start} to {batch.stop}"


def _describe(error: Exception) -> str:
    """What went wrong and where; the message only of errors that cannot quote a document."""
    if isinstance(error, (TidemillError, OSError)):
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name} ({Path(frame.filename).name}:{frame.lineno})"
