"""Two sides of a shard read side by side, however they are cut into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.difference import _match, _windows

_rows = st.lists(st.integers(0, 60), unique=True, max_size=30).map(sorted)
_cuts = st.sets(st.integers(1, 29), max_size=5)


def _pieces(rows: list[int], cuts: set[int]) -> Iterator[pa.Table]:
    edges = [0, *sorted(c for c in cuts if c < len(rows)), len(rows)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            yield pa.table({"_row": pa.array(rows[start:stop], pa.int64())})


@given(_rows, _cuts, _rows, _cuts)
def test_every_row_is_seen_once_and_common_ones_meet(left: list[int], some: set[int], right: list[int], others: set[int]) -> None:
    seen: tuple[list[int], list[int]] = ([], [])
    common: list[int] = []
    for first, second in _windows(_pieces(left, some), _pieces(right, others)):
        for rows, side in zip(seen, (first, second), strict=True):
            rows += side["_row"].to_pylist() if side is not None else []
        a, b = _match(first, second)
        if first is not None and second is not None:
            assert first["_row"].take(pa.array(a)).to_pylist() == second["_row"].take(pa.array(b)).to_pylist()
            common += first["_row"].take(pa.array(a)).to_pylist()
    assert seen == (left, right)
    assert common == sorted(set(left) & set(right))
