"""What is done to one piece, plainly: reading, preparing, encoding. Whatever goes wrong is raised, or ends the process.

`pipeline.stages` calls these steps on workers; `pipeline.child` calls them in a process beside a worker, where a piece that
kills its worker is taken apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.schema import COUNTS, ID, ROW, SHARD, TEXT
from pipeline import quarantine, sink
from pipeline.batch import Batch
from pipeline.ledger.pieces import Todo
from pipeline.passes import Passes
from pipeline.preparing import Preparer, count_column
from pipeline.recipe import Recipe
from pipeline.source.reading import read_span

Watch = AbstractContextManager[object]


class Steps:
    """The steps of one job. `threads`: torch's threads on a CPU worker, 0 for its own choice."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self._recipe = recipe
        self._threads = threads
        self._preparer = Preparer(recipe)
        self._passes: Passes | None = None

    def load(self) -> None:
        """Load the models; only processes that encode do. Incomplete where their files are not those of the plan."""
        try:
            self._passes = Passes(self._recipe, self._preparer, self._threads)
        except Exception:
            self._preparer.check_unchanged()  # where that is why, it says so
            raise

    def read(self, todo: Todo) -> Iterator[Batch]:
        """The pieces of a span in order, without those that are done."""
        return read_span(todo, self._recipe.read)

    def prepare(self, batch: Batch) -> Batch:
        """Tokenize and measure windows: adds ids and counts, takes the text away, sets aside what is too long."""
        started = time.perf_counter()
        batch = set_aside(batch, self._preparer.unfit(batch.documents))
        text_bytes = pc.sum(pc.binary_length(batch.documents[TEXT])).as_py() or 0
        documents, too_long = self._preparer.prepare(batch.documents)
        counts = {
            "text_bytes": text_bytes,
            "tokenizations": len(self._recipe.tokenizations),
            "prepare_seconds": time.perf_counter() - started,
        }
        return set_aside(replace(batch, documents=documents, statistics={**batch.statistics, **counts}), too_long)

    def encode(self, batch: Batch, watch: Watch | None = None) -> Batch:
        """Run the encoders and heads: the documents become the rows of the output table. `watch` spans the work itself."""
        if self._passes is None:
            raise RuntimeError("load() comes before encode()")
        sample = self._recipe.sample_of(batch.span.weight) if batch.index == 0 else 0
        results = self._passes(batch.documents, sample=sample, watch=watch)
        documents = batch.documents
        for name, values in results.values.items():
            documents = documents.append_column(f"__result_{name}", values)
        batch = replace(batch, documents=documents, statistics={**batch.statistics, **results.statistics})
        batch = set_aside(batch, results.failed)
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

    def probe(self, stage: str, batch: Batch) -> None:
        """Prepare or encode a document without text beside what `batch` has: raises where that fails whatever it is given."""
        if stage == "prepare":
            for tokenizer in self._preparer.tokenizers.values():
                tokenizer.tokenize(pa.array([""], pa.large_string()))
            return
        if self._passes is None:
            self.load()
        assert self._passes is not None
        if batch.documents.num_rows:
            self._passes.probe(batch.documents.slice(0, 1))

    def pause(self) -> Watch:
        """A stretch of time in which nothing is encoded here, and the device's memory is left to others."""
        return self._passes.pause() if self._passes else nullcontext()


def set_aside(batch: Batch, reasons: dict[int, tuple[str, str]]) -> Batch:
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
