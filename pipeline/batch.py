"""One piece on its way through the stages, and its form between Ray's workers.

Between workers a piece travels as a table of exactly one row: a JSON header and two Arrow IPC streams. However Ray cuts,
merges or replays its blocks, a piece stays whole, and a piece without a single good row is still a row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.ledger.pieces import Shard, Span, Todo


@dataclass(frozen=True)
class Batch:
    """The rows of one piece (`span`, `index`), which really ran from `start` to `stop`."""

    span: Span
    index: int
    start: int
    stop: int
    last: bool
    """No further piece follows in this span."""
    rows_in: int
    documents: pa.Table
    """One row for each good document, in input order; each stage adds or replaces columns."""
    quarantine: pa.Table
    """Rows set aside so far (pipeline.quarantine.SCHEMA)."""
    statistics: dict[str, float] = field(default_factory=dict)
    attempt: int = 0
    """How many times the piece was begun before, without a record."""

    @property
    def id(self) -> str:
        """The piece's id in the books."""
        return self.span.piece_id(self.index)


def to_block(batch: Batch) -> pa.Table:
    """`batch` as one row of {header: string, documents: large_binary, quarantine: large_binary}."""
    header = {k: getattr(batch, k) for k in ("index", "start", "stop", "last", "rows_in", "statistics", "attempt")}
    header["span"] = asdict(batch.span)
    return block(header, _serialize(batch.documents), _serialize(batch.quarantine))


def block(header: dict[str, Any], documents: pa.Buffer, quarantine: pa.Buffer) -> pa.Table:
    """One row of {header: string, documents: large_binary, quarantine: large_binary}; the buffers are not copied."""
    columns = [pa.array([json.dumps(header)]), *(_one(body) for body in (documents, quarantine))]
    return pa.table(columns, names=["header", "documents", "quarantine"])


def from_block(block: pa.Table) -> list[Batch]:
    """The pieces in a block made by `to_block`."""
    batches = []
    for i in range(block.num_rows):
        header = json.loads(block["header"][i].as_py())
        tables = {k: pa.ipc.open_stream(block[k][i].as_buffer()).read_all() for k in ("documents", "quarantine")}
        batches.append(Batch(**{**header, **tables, "span": _span(header["span"])}))
    return batches


def todo_block(todo: Todo) -> pa.Table:
    """A ticket for one span with work left: one row of {todo: string}."""
    return pa.table({"todo": [json.dumps({"span": asdict(todo.span), "done": sorted(todo.done)})]})


def from_todo_block(block: pa.Table) -> list[Todo]:
    """The tickets in a block made by `todo_block`."""
    tickets = [json.loads(text) for text in block["todo"].to_pylist()]
    return [Todo(_span(t["span"]), frozenset(t["done"])) for t in tickets]


def _span(plain: dict[str, Any]) -> Span:
    return Span(**{**plain, "shard": Shard(**plain["shard"])})


def _one(body: pa.Buffer) -> pa.Array[Any]:
    """A large_binary array of the one value `body`."""
    offsets = pa.array([0, body.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, body])


def _serialize(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
