"""What both engines run on each piece: read -> prepare -> encode -> write.

`Stages` is built on the worker from a picklable `Recipe`. Every stage takes an item and hands on an item: a `Batch` on its
way, or the `Outcome` of a piece that is settled (recorded already, or failed), which the stages behind let through.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.devices import set_threads
from operators.encoding import Encode, Encoder
from operators.models.layout import read_layout
from operators.models.repository import resolve
from operators.schema import ID, N_SEGMENTS, N_TOKENS, ROW, SHARD, TEXT, TRUNCATED
from operators.segmentation import segment
from operators.tokenization import Tokenizer, Tokens
from pipeline import batch as wire
from pipeline import quarantine, sink
from pipeline.batch import Batch
from pipeline.errors import TidemillError
from pipeline.ledger.pieces import Todo
from pipeline.ledger.records import Record, from_json, read_record, to_json
from pipeline.recipe import ModelRecipe, Recipe, TaskRecipe, View
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
        self._encoders: list[Encode] | None = None
        self._one_at_a_time = threading.Lock()

    @cached_property
    def _tokenizers(self) -> list[Tokenizer]:
        """One for each view, built where they are used: a task that only writes needs none."""
        return [_tokenizer(view) for view in self._recipe.views]

    def load(self) -> None:
        """Load the models; only workers that encode do."""
        models: dict[ModelRecipe, Encoder] = {
            model: _load(self._recipe, model) for model in {task.model for task in self._recipe.tasks}
        }
        self._encoders = [
            _encode(self._recipe, task, models[task.model], self._tokenizers[task.view]) for task in self._recipe.tasks
        ]

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
                yield Outcome(where, record) if record else batch
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

    def finish(self, item: Item) -> Outcome:
        """prepare, encode and write in one go; never raises for what one piece did."""
        return self.write(self.encode(self.prepare(item)))

    def _guard(self, item: Item, stage: Callable[[Batch], Item]) -> Item:
        if isinstance(item, Outcome):
            return item
        try:
            return stage(item)
        except Exception as error:  # noqa: BLE001 -- as in read
            return Outcome(_where(item), error=_describe(error))

    def _prepare(self, batch: Batch) -> Batch:
        texts = batch.documents[TEXT].combine_chunks()
        documents = batch.documents.drop_columns([TEXT])
        too_long = np.zeros(len(texts), bool)
        for i, (view, tokenizer) in enumerate(zip(self._recipe.views, self._tokenizers, strict=True)):
            tokens = tokenizer.tokenize(texts, offsets=view.offsets)
            segments = segment(np.diff(tokens.bounds), view.windowing)
            too_long |= segments.too_long
            documents = _append(documents, _view_columns(i, tokens))
            counts = {N_TOKENS: np.diff(tokens.bounds), N_SEGMENTS: segments.n_segments}
            documents = _append(documents, {_count(i, k): pa.array(v, pa.int32()) for k, v in counts.items()})
            documents = _append(documents, {_count(i, TRUNCATED): pa.array(segments.truncated)})
        text_bytes = pc.sum(pc.binary_length(texts)).as_py() or 0
        batch = replace(batch, documents=documents, statistics={**batch.statistics, "text_bytes": text_bytes})
        reasons = {
            int(row): ("too_long", "more tokens than one window holds, and segments.policy is error")
            for row in np.flatnonzero(too_long)
        }
        return _set_aside(batch, reasons)

    def _encode(self, batch: Batch) -> Batch:
        if self._encoders is None:
            raise RuntimeError("load() comes before encode()")
        documents = batch.documents
        failed: dict[int, tuple[str, str]] = {}
        statistics = dict(batch.statistics)
        started = time.perf_counter()
        with self._one_at_a_time:
            waited = time.perf_counter()
            if self._threads:
                set_threads(self._threads)  # here, since OpenMP keeps the number for each calling thread
            for task, encoder in zip(self._recipe.tasks, self._encoders, strict=True):
                encoded = encoder(_view_tokens(documents, task.view))
                documents = _append(documents, {task.name: encoded.values})
                for row, (reason, detail) in encoded.failed.items():
                    failed.setdefault(row, (f"task_failed:{task.name}" if reason == "task_failed" else reason, detail))
                for name, value in encoded.statistics.items():
                    statistics[name] = statistics.get(name, 0) + value
            statistics["encode_seconds"] = time.perf_counter() - waited
            statistics["wait_seconds"] = waited - started
        batch = _set_aside(replace(batch, documents=documents, statistics=statistics), failed)
        return replace(batch, documents=self._output(batch))

    def _output(self, batch: Batch) -> pa.Table:
        """The columns of the output table, in its order and with its exact types."""
        documents = batch.documents
        names = {SHARD: sink.shard_column(batch.span.shard.key, documents.num_rows)}
        for count in (N_TOKENS, N_SEGMENTS, TRUNCATED):
            names[count] = documents[_count(0, count)]
            names |= {f"{task.name}_{count}": documents[_count(task.view, count)] for task in self._recipe.tasks}
        columns = [names[f.name] if f.name in names else documents[f.name] for f in self._recipe.schema]
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


def _tokenizer(view: View) -> Tokenizer:
    path = resolve(view.model.source, view.model.revision).path
    layout = read_layout(path)
    return Tokenizer(layout.transformer_dir, prompt=view.prompt, lowercase=layout.do_lower_case)


def _load(recipe: Recipe, model: ModelRecipe) -> Encoder:
    """The model's weights, once for all tasks that use it."""
    layout = read_layout(resolve(model.source, model.revision).path)
    encoder: Encoder = importlib.import_module(f"operators.encoders.{recipe.backend}").load(
        layout, recipe.device, recipe.precision
    )
    return encoder


def _encode(recipe: Recipe, task: TaskRecipe, encoder: Encoder, tokenizer: Tokenizer) -> Encode:
    layout = read_layout(resolve(task.model.source, task.model.revision).path)
    kind = importlib.import_module(f"operators.heads.{task.head}")
    head = kind.Head(kind.Config(**task.settings), layout)
    return Encode(encoder, head, tokenizer, recipe.views[task.view].windowing, recipe.tokens_per_pack)


def _count(view: int, name: str) -> str:
    return f"__{view}_{name}"


def _view_columns(view: int, tokens: Tokens) -> dict[str, pa.Array]:
    bounds = pa.array(tokens.bounds, pa.int64())
    columns = {f"__{view}_ids": pa.LargeListArray.from_arrays(bounds, pa.array(tokens.ids, pa.int32()))}
    if tokens.spans is not None:
        flat = pa.array(np.ascontiguousarray(tokens.spans).reshape(-1), pa.int32())
        columns[f"__{view}_spans"] = pa.LargeListArray.from_arrays(bounds, pa.FixedSizeListArray.from_arrays(flat, 2))
    return columns


def _view_tokens(documents: pa.Table, view: int) -> Tokens:
    ids = documents[f"__{view}_ids"].combine_chunks()
    lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    spans = None
    if f"__{view}_spans" in documents.column_names:
        pairs = documents[f"__{view}_spans"].combine_chunks().flatten()
        spans = pairs.flatten().to_numpy().reshape(-1, 2)
    return Tokens(ids=ids.flatten().to_numpy(), bounds=bounds, spans=spans)


def _append(documents: pa.Table, columns: dict[str, Any]) -> pa.Table:
    for name, column in columns.items():
        documents = documents.append_column(name, column)
    return documents


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
