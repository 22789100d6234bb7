"""Pieces on their way between workers: what is packed into one row comes out equal, however rows are merged."""

from __future__ import annotations

import pyarrow as pa

from pipeline import quarantine
from pipeline.batch import Batch, from_todo_block, todo_block
from pipeline.ledger.pieces import Shard, Span, Todo
from pipeline.stages import Outcome, from_block, to_block

SPAN = Span(Shard("a/b.jsonl", "file:///a/b.jsonl", "10-1", 10), 0, None, 1 << 20, weight=7)


def batch(rows: int) -> Batch:
    documents = pa.table({"_row": pa.array(range(rows), pa.int64()), "ids": pa.array([[1, 2]] * rows, pa.large_list(pa.int32()))})
    entries = [quarantine.Entry(3, None, "bad_json", "line of 9 bytes")]
    return Batch(SPAN, 2, 5, 9, True, rows + 1, documents, quarantine.table("a/b.jsonl", entries), {"text_bytes": 4.0})


def test_a_batch_survives_the_way_even_without_a_good_row() -> None:
    for rows in (0, 1, 1000):
        (back,) = from_block(to_block(batch(rows)))
        assert isinstance(back, Batch)
        assert back == batch(rows)
        assert back.documents.schema == batch(rows).documents.schema


def test_merged_blocks_still_hold_whole_pieces() -> None:
    merged = pa.concat_tables([to_block(batch(2)), to_block(Outcome("x", error="boom")), to_block(batch(0))])
    assert from_block(merged) == [batch(2), Outcome("x", error="boom"), batch(0)]


def test_tickets_keep_span_and_recorded_pieces() -> None:
    todos = [Todo(SPAN, frozenset({0, 3})), Todo(SPAN)]
    assert from_todo_block(pa.concat_tables(map(todo_block, todos))) == todos
