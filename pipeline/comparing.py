"""Comparing columns of two versions on the rows that both have: equal or not, labels, entities, angles between vectors.

All by Arrow and numpy; no Python runs for a row. Counters are all that is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Positions = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

_SHOWN = 20
"""Label shifts in a report, the most frequent ones."""
_ROUNDING, _HALF_ROUNDING = 1e-5, 1e-3
"""Floats apart by no more, absolute and relative, are the same: a document in another pack comes out a few bits apart."""


class Comparison:
    """Sums up what was seen so far of columns that both versions have with one type."""

    def __init__(self, fields: Iterable[pa.Field]) -> None:
        self._fields = list(fields)
        self.changed = 0
        """Common rows where any column differs."""
        self._labels: dict[str, list[Counter[str]]] = {}
        self._shifts: dict[str, Counter[tuple[str, str]]] = {}
        self._entities: dict[str, list[Counter[str]]] = {}
        self._cosines = {f.name: _Cosines() for f in self._fields if is_vector(f.type)}

    def add(self, first: pa.Table | None, second: pa.Table | None, common: Positions) -> None:
        """One window: the rows of both sides, and the positions of the common ones."""
        different = np.zeros(len(common[0]), bool)
        for field in self._fields:
            sides = [_column(table, field) for table in (first, second)]
            left, right = sides[0].take(pa.array(common[0])), sides[1].take(pa.array(common[1]))
            different |= differs(left, right)
            self._count(field, sides, left, right)
        self.changed += int(different.sum())

    def _count(self, field: pa.Field, sides: list[pa.Array], left: pa.Array, right: pa.Array) -> None:
        if is_vector(field.type):
            self._cosines[field.name].add(left, right)
        elif _labels_of(field.type):
            counts = self._labels.setdefault(field.name, [Counter(), Counter()])
            for counter, side in zip(counts, sides, strict=True):
                counter.update(_counted(_labels(side)))
            if _has(field.type, "label"):
                shifts = self._shifts.setdefault(field.name, Counter())
                shifts.update(_shifts(pc.struct_field(left, "label"), pc.struct_field(right, "label")))
        elif pa.types.is_list(field.type) and _has(field.type.value_type, "label"):
            counts = self._entities.setdefault(field.name, [Counter(), Counter()])
            for counter, side in zip(counts, sides, strict=True):
                counter.update(_counted(pc.struct_field(side.flatten(), "label")))

    def report(self) -> dict[str, Any]:
        """The counters as plain data: `labels`, `entities`, `vectors`, each by column."""
        return {
            "labels": {name: self._labels_report(name) for name in self._labels},
            "entities": {
                name: {"before": sum(a.values()), "after": sum(b.values()), "by_label": _both(a, b)}
                for name, (a, b) in self._entities.items()
            },
            "vectors": {name: cosines.report() for name, cosines in self._cosines.items()},
        }

    def _labels_report(self, name: str) -> dict[str, Any]:
        shifts = self._shifts.get(name, Counter())
        top = [{"before": a, "after": b, "rows": rows} for (a, b), rows in shifts.most_common(_SHOWN)]
        return {"by_label": _both(*self._labels[name]), "shifted": sum(shifts.values()), "shifts": top}


class _Cosines:
    """Mean and smallest cosine between vectors before and after."""

    def __init__(self) -> None:
        self.rows, self.total, self.smallest = 0, 0.0, 1.0

    def add(self, left: pa.Array, right: pa.Array) -> None:
        present = pc.and_(left.is_valid(), right.is_valid())
        if not pc.any(present).as_py():
            return
        a, b = (_matrix(side.filter(present)) for side in (left, right))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        # A vector of zeros has no direction: as near as it can be to another of zeros, and to no other.
        both_zero = ~a.any(axis=1) & ~b.any(axis=1)
        cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), both_zero)
        self.rows += len(cosines)
        self.total += float(cosines.sum())
        self.smallest = min(self.smallest, float(cosines.min()))

    def report(self) -> dict[str, Any]:
        if not self.rows:
            return {"rows": 0, "mean_cosine": None, "min_cosine": None}
        return {"rows": self.rows, "mean_cosine": round(self.total / self.rows, 6), "min_cosine": round(self.smallest, 6)}


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column holds one vector of numbers for each row."""
    if not pa.types.is_fixed_size_list(kind):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def differs(left: pa.Array, right: pa.Array) -> np.ndarray[Any, Any]:
    """For each position of two arrays of one type: whether the values differ. Null equals null, floats within rounding are
    equal; nested values are compared through all their levels."""
    kind = left.type
    if pa.types.is_dictionary(kind):
        return differs(left.dictionary_decode(), right.dictionary_decode())
    if pa.types.is_map(kind):
        entries = pa.list_(pa.struct([kind.key_field, kind.item_field]))
        return differs(left.cast(entries), right.cast(entries))
    nulls = _numpy(left.is_null()), _numpy(right.is_null())
    here = ~nulls[0] & ~nulls[1]
    different: np.ndarray[Any, Any] = nulls[0] != nulls[1]
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            # Null parents do not mask their children, so these count only where both parents are there.
            different |= here & differs(pc.struct_field(left, [i]), pc.struct_field(right, [i]))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        different[here] = _lists_differ(left.filter(pa.array(here)), right.filter(pa.array(here)))
    elif pa.types.is_floating(kind):
        a, b = (side.to_numpy(zero_copy_only=False).astype(np.float64) for side in (left, right))
        rounding = _HALF_ROUNDING if pa.types.is_float16(kind) else _ROUNDING
        different |= here & ~np.isclose(a, b, rtol=rounding, atol=rounding, equal_nan=True)
    else:
        different |= here & _numpy(pc.fill_null(pc.not_equal(left, right), False))
    return different


def _lists_differ(left: pa.Array, right: pa.Array) -> np.ndarray[Any, Any]:
    """As `differs`, for lists of which none is null."""
    lengths = [_lengths(side) for side in (left, right)]
    different: np.ndarray[Any, Any] = lengths[0] != lengths[1]
    same = np.flatnonzero(~different)
    if not lengths[0][same].any():
        return different
    values = [side.take(pa.array(same)) for side in (left, right)]
    elements = differs(*(side.flatten() for side in values))
    parents = np.repeat(same, lengths[0][same])
    different[parents[elements]] = True
    return different


def _lengths(lists: pa.Array) -> np.ndarray[Any, Any]:
    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size, np.int64)
    return pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _column(table: pa.Table | None, field: pa.Field) -> pa.Array:
    if table is None:
        return pa.array([], field.type)
    column = table[field.name].combine_chunks()
    return column if column.type == field.type else column.cast(field.type)


def _labels_of(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and (_has(kind, "label") or _has(kind, "labels"))


def _labels(side: pa.Array) -> pa.Array:
    """All labels of a classification column: one for each row, or of a multi-label task any number."""
    return pc.struct_field(side, "label") if _has(side.type, "label") else pc.struct_field(side, "labels").flatten()


def _has(kind: pa.DataType, name: str) -> bool:
    """Whether a struct has a field of strings, or of lists of them, of this name."""
    if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
        return False
    inner = kind.field(name).type
    return bool(pa.types.is_string(inner.value_type if pa.types.is_list(inner) else inner))


def _counted(labels: pa.Array) -> dict[str, int]:
    counted = pc.value_counts(labels.drop_null())
    names, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    return dict(zip(names, counts, strict=True))


def _shifts(left: pa.Array, right: pa.Array) -> dict[tuple[str, str], int]:
    """(label before, label after) -> rows, where the two differ."""
    moved = pa.array(differs(left, right))
    pairs = pa.table({"before": left.filter(moved), "after": right.filter(moved)})
    grouped = pairs.group_by(["before", "after"]).aggregate([([], "count_all")]).to_pydict()
    return {(str(a), str(b)): n for a, b, n in zip(grouped["before"], grouped["after"], grouped["count_all"], strict=True)}


def _both(before: Counter[str], after: Counter[str]) -> dict[str, dict[str, int]]:
    return {name: {"before": before[name], "after": after[name]} for name in sorted({*before, *after})}


def _matrix(vectors: pa.Array) -> np.ndarray[Any, Any]:
    return vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(vectors), -1)  # type: ignore[no-any-return]


def _numpy(mask: pa.Array) -> np.ndarray[Any, Any]:
    return mask.to_numpy(zero_copy_only=False).astype(bool)  # type: ignore[no-any-return]
