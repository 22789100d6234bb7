"""The quarantine table: rows that could not be processed, each with its reason; never document text."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from pipeline.wording import printable

SCHEMA = pa.schema(
    [
        pa.field("_shard", pa.string(), nullable=False),
        pa.field("_row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


class Entry(NamedTuple):
    """One quarantined row. `row` is None where a whole piece could not be read."""

    row: int | None
    id: str | None
    reason: str
    detail: str


_LONGEST_ID = 1024
"""Characters. Ids are a convenience here; thousands of huge ones would fill the memory."""


def short(id_: str | None) -> str | None:
    """An id as an entry has it: none where it is too long to be one."""
    return id_ if id_ is None or len(id_) <= _LONGEST_ID else None


def table(shard_key: str, entries: list[Entry]) -> pa.Table:
    """Entries of one shard as rows of the quarantine table (`SCHEMA`)."""
    # Details name types and columns, which come with the shard.
    entries = [entry._replace(detail=printable(entry.detail)) for entry in entries]
    columns = [[shard_key] * len(entries), *([getattr(e, name) for e in entries] for name in Entry._fields)]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
