"""Builders of spans and records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.ledger.pieces import Shard, Span
from pipeline.ledger.records import Record

MakeSpan = Callable[..., Span]
MakeRecord = Callable[..., Record]


@pytest.fixture
def make_span() -> MakeSpan:
    """A Parquet span of 10 rows; keywords: key, version and the fields of Span."""

    def make(key: str = "a.parquet", version: str = "v1", **fields: Any) -> Span:
        shard = Shard(key, f"/in/{key}", version, 1000)
        return Span(**{"shard": shard, "start": 0, "stop": 10, "piece_bytes": 100, "rows": 10, **fields})

    return make


@pytest.fixture
def make_record() -> MakeRecord:
    """A sound record of a span's piece `index`, which has 10 rows, 2 of them set aside; keywords: fields of Record."""

    def make(span: Span, index: int = 0, generation: str = "g1", **fields: Any) -> Record:
        piece = span.piece_id(index)
        record = Record(
            piece=piece,
            index=index,
            shard=span.shard.key,
            version=span.shard.version,
            start=span.start + 10 * index,
            span_start=span.start,
            span_stop=span.stop,
            stop=span.start + 10 * (index + 1),
            piece_bytes=span.piece_bytes,
            generation=generation,
            file=f"data/{generation}/{piece}-1.parquet",
            bytes=123,
            sha256="00" * 32,
            quarantine_file=f"quarantine/{generation}/{piece}-1.parquet",
            rows_in=10,
            rows_out=8,
            quarantined={"bad_json": 1, "null_text": 1},
            filtered=0,
            schema="s1",
            statistics={"tokens": 40.0},
            last=True,
        )
        return replace(record, **fields)

    return make
