"""Estimates for `tidemill plan`: tokens, windows and packs from a sample of documents, memory from the weights' size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from operators.schema import documents_schema
from pipeline.cost import cost
from pipeline.ledger.books import totals
from pipeline.ledger.pieces import Span, Todo
from pipeline.ledger.records import Record, span_identity
from pipeline.notes import changes, notes, removed
from pipeline.planning import Plan
from pipeline.preparing import Preparer
from pipeline.source.reading import read_span

_SAMPLE_SPANS = 8
_SAMPLE_ROWS = 64
_SAMPLE_BYTES = 64 * 2**10
_PIECE_OVERHEAD = 1 << 30
"""Bytes of interpreter, torch and one piece with its packs."""


def estimate(plan: Plan) -> dict[str, Any]:
    """The plan as plain data. Reads a few rows of up to eight shards with work left; loads no weights."""
    source, listing = plan.source, plan.listing
    work = _tokens(plan)
    report: dict[str, Any] = {
        "input": ", ".join(plan.config.input.paths),
        "shards": len(listing.shards),
        "ignored_files": listing.ignored,
        "text_bytes": source.text_bytes,
        "piece_bytes": source.piece_bytes,
        "pieces": sum(max(1, s.weight // s.piece_bytes) if s.rows is None else 1 for s in source.spans),
        "spans": len(source.spans),
        "spans_to_do": len(plan.todos),
        "shards_that_left": len(removed(plan)),
        "rows": _rows(plan),
        "generation": plan.generation,
        "table_version": plan.base.version if plan.base else None,
        "changes": changes(plan),
        "device": f"{plan.device.kind} ({plan.reasons['device']})",
        "precision": f"{plan.precision} ({plan.reasons['precision']})",
        "tokens_per_pack": plan.recipe.tokens_per_pack,
        "windows": {
            name: f"{m.view.windowing.capacity - m.beside} body tokens, overlap {m.view.windowing.overlap}"
            + (", less those of each document's second text" if m.head.companion and m.head.companion.column else "")
            for name, m in plan.models.items()
        },
        "estimate": work,
        "cost": cost(plan, work["rows_to_do"], work["tokens_to_do"]),
        "worker_memory_bytes": 2 * plan.weights_bytes + _PIECE_OVERHEAD,
        "schema": [f"{f.name}: {f.type}" for f in plan.recipe.schema],
        "notes": notes(plan),
    }
    return report


def _recorded(plan: Plan) -> list[Record]:
    """Records of the input's own pieces; those of shards that changed or left are still in the store."""
    spans = {span_identity(span) for span in plan.source.spans}
    return [record for record in plan.known.values() if record.span in spans]


def _rows(plan: Plan) -> str:
    footers = sum(t.span.rows or 0 for t in plan.todos)
    recorded = sum(r.rows_in for r in _recorded(plan))
    unread = sum(1 for t in plan.todos if t.span.rows is None and not t.span.unreadable)
    parts = [f"{footers} by Parquet footers"] if footers else []
    parts += [f"{recorded} recorded"] if recorded else []
    parts += [f"those of {unread} JSONL spans"] if unread else []
    return ", ".join(parts) or "0"


def _tokens(plan: Plan) -> dict[str, Any]:
    """Tokens and windows over all passes: of recorded pieces as counted, of the spans to do scaled up from a sample."""
    spans = sorted((t.span for t in plan.todos if not t.span.unreadable and t.span.rows != 0), key=_by_size)
    samples = [_sample(plan, span) for span in _spread(spans)]
    covered = sum(weight for _, weight in samples)
    scale = sum(s.weight for s in spans) / covered if covered else 0.0
    preparer = Preparer(plan.recipe)
    documents, tokens, segments, packs = 0, 0, 0, 0
    read = pa.concat_tables([table for table, _ in samples]) if samples else None
    if read is not None:
        unfit = preparer.unfit(read)
        read, _ = preparer.prepare(read.filter(pa.array(~np.isin(np.arange(read.num_rows), list(unfit)))))
        documents = read.num_rows
        for share in plan.recipe.passes:
            inputs = preparer.inputs(read, share.view)
            of_pass = int((inputs.sizes + preparer.frame(share.view).size).sum() * scale)
            tokens += of_pass
            segments += int(len(inputs.sizes) * scale)
            packs += -(-of_pass // plan.recipe.tokens_per_pack)
    done = totals(_recorded(plan)).statistics
    return {
        "sample_documents": documents,
        "rows_to_do": _rows_to_do(spans, samples),
        "tokens": tokens + int(done.get("tokens", 0)),
        "segments": segments + int(done.get("segments", 0)),
        "tokens_to_do": tokens,
        "packs_to_do": packs,
    }


def _by_size(span: Span) -> tuple[int, str, int]:
    """The biggest first, and always in the same order, so that an estimate does not change from call to call."""
    return -span.weight, span.shard.key, span.start


def _rows_to_do(spans: Sequence[Span], samples: Sequence[tuple[pa.Table, float]]) -> int:
    """By Parquet footers; of JSONL scaled up from the samples."""
    covered = sum(weight for _, weight in samples)
    density = sum(table.num_rows for table, _ in samples) / covered if covered else 0.0
    return sum(s.rows or 0 for s in spans) + int(density * sum(s.weight for s in spans if s.rows is None))


def _spread(spans: list[Span]) -> list[Span]:
    """Up to `_SAMPLE_SPANS` of them, evenly spread."""
    step = max(1, len(spans) // _SAMPLE_SPANS)
    return spans[::step][:_SAMPLE_SPANS]


def _sample(plan: Plan, span: Span) -> tuple[pa.Table, float]:
    """Documents at the beginning of a span, and how much of its weight they stand for."""
    if span.rows is not None:
        rows = min(span.rows, _SAMPLE_ROWS)
        part = replace(span, stop=span.start + rows, rows=rows)
    else:
        part = replace(span, piece_bytes=min(span.piece_bytes, _SAMPLE_BYTES))
    for piece in islice(read_span(Todo(part), plan.recipe.read), 1):
        share = piece.rows_in / span.rows if span.rows else min(1.0, (piece.stop - piece.start) / max(1, span.weight))
        return piece.documents, span.weight * share
    return documents_schema(plan.recipe.read.keep).empty_table(), 0.0
