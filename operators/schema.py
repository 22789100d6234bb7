"""Names and types of the columns that the stages hand to each other and of those in the output table."""

from __future__ import annotations

import pyarrow as pa

SHARD = "_shard"
ROW = "_row"
ID = "id"
N_TOKENS = "n_tokens"
N_SEGMENTS = "n_segments"
TRUNCATED = "truncated"
COUNTS = (N_TOKENS, N_SEGMENTS, TRUNCATED)

TEXT = "__text"
"""Columns that start with two underscores live only between stages; no kept column or task may."""

SHARD_TYPE = pa.dictionary(pa.int32(), pa.string())


def documents_schema(keep: pa.Schema) -> pa.Schema:
    """What `read` hands on: one row for each document, text as large_string and never null."""
    return pa.schema(
        [
            pa.field(ROW, pa.int64(), nullable=False),
            *keep,
            pa.field(ID, pa.string()),
            pa.field(TEXT, pa.large_string(), nullable=False),
        ]
    )
