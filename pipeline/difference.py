"""What differs between two versions of a table: rows, label shifts, how far vectors moved.

A row is the same in both where `_shard` and `_row` are. Files that both versions name are not opened; the others are read
side by side, shard by shard, and of each side about one piece is in memory. Comparing is `pipeline.comparing`'s work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.schema import ROW, SHARD
from pipeline.comparing import Comparison
from pipeline.ledger.publish import Commit, commit_schema, manifest_records
from pipeline.ledger.records import Record
from pipeline.ledger.store import Store
from pipeline.table import open_data

Window = tuple[pa.Table | None, pa.Table | None]
"""Rows of the two sides up to one `_row`."""


def difference(store: Store, old: Commit, new: Commit) -> dict[str, Any]:
    """Compare two versions; plain data. `rows` counts all; `labels`, `entities` and `vectors` only rows in files that the two
    versions do not share."""
    then, now = _by_shard(manifest_records(store, old)), _by_shard(manifest_records(store, new))
    before, after = commit_schema(old), commit_schema(new)
    both = [f.name for f in before if f.name in after.names and after.field(f.name).type == f.type]
    comparison = Comparison([before.field(name) for name in both if name not in (SHARD, ROW)])
    rows = dict.fromkeys(("added", "removed", "common", "not_read"), 0)
    for shard in sorted(then.keys() | now.keys()):
        left, right = then.get(shard, []), now.get(shard, [])
        shared = {r.file for r in left} & {r.file for r in right}
        rows["not_read"] += sum(r.rows_out for r in left if r.file in shared)
        sides = [_pieces(store, [r for r in side if r.file not in shared], both) for side in (left, right)]
        for first, second in _windows(*sides):
            common = _match(first, second)
            rows["common"] += len(common[0])
            rows["removed"] += (first.num_rows if first else 0) - len(common[0])
            rows["added"] += (second.num_rows if second else 0) - len(common[1])
            comparison.add(first, second, common)
    return {
        "from": _side(old),
        "to": _side(new),
        "rows": {
            "before": old.totals["rows_out"],
            "after": new.totals["rows_out"],
            "added": rows["added"],
            "removed": rows["removed"],
            "changed": comparison.changed,
            "same": rows["common"] - comparison.changed + rows["not_read"],
        },
        "shards": {
            "added": len(now.keys() - then.keys()),
            "removed": len(then.keys() - now.keys()),
            "common": len(now.keys() & then.keys()),
        },
        "columns": {
            "added": [n for n in after.names if n not in before.names],
            "removed": [n for n in before.names if n not in after.names],
            "other_type": [n for n in before.names if n in after.names and n not in both],
        },
        **comparison.report(),
    }


def _side(commit: Commit) -> dict[str, Any]:
    return {"version": commit.version, "generation": commit.generation, "created_at": commit.created_at}


def _by_shard(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records with a data file, by shard, in order of their rows."""
    shards: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.start, r.index)):
        if record.file:
            shards[record.shard].append(record)
    return dict(shards)


def _pieces(store: Store, records: Sequence[Record], columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a shard, a piece at a time, in order of `_row`."""
    wanted = [name for name in columns if name != SHARD]
    for record in records:
        assert record.file is not None
        with open_data(store, record) as file:
            yield pq.ParquetFile(file, pre_buffer=False).read(columns=wanted, use_threads=False)


def _windows(left: Iterator[pa.Table], right: Iterator[pa.Table]) -> Iterator[Window]:
    """Both sides cut at the same `_row`s, so that every common row stands in the same window."""
    first, second = next(left, None), next(right, None)
    while first is not None and second is not None:
        until = min(_last(first), _last(second))
        yield _head(first, until), _head(second, until)
        first, second = _rest(first, until) or next(left, None), _rest(second, until) or next(right, None)
    while first is not None:
        yield first, None
        first = next(left, None)
    while second is not None:
        yield None, second
        second = next(right, None)


def _last(table: pa.Table) -> int:
    return int(table[ROW][-1].as_py())


def _head(table: pa.Table, until: int) -> pa.Table:
    return table.slice(0, _cut(table, until))


def _rest(table: pa.Table, until: int) -> pa.Table | None:
    rest = table.slice(_cut(table, until))
    return rest if rest.num_rows else None


def _cut(table: pa.Table, until: int) -> int:
    return int(np.searchsorted(table[ROW].to_numpy(), until, side="right"))


def _match(first: pa.Table | None, second: pa.Table | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Positions in `first` and in `second` of the rows that both have."""
    if first is None or second is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, left, right = np.intersect1d(first[ROW].to_numpy(), second[ROW].to_numpy(), assume_unique=True, return_indices=True)
    return left, right
