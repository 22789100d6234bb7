"""Columns of two versions compared: nested values against Python's own equality, labels, entities, cosines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.comparing import Comparison, differs

ENTITIES = pa.list_(pa.struct([("start", pa.int32()), ("label", pa.string()), ("score", pa.float32())]))
_words = st.sampled_from(["a", "b", None])
_numbers = st.sampled_from([0, 1, None])
_entity = st.none() | st.fixed_dictionaries({"start": _numbers, "label": _words, "score": st.sampled_from([0.5, None])})
VALUES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), _words),
    (pa.dictionary(pa.int32(), pa.string()), _words),
    (pa.float16(), st.sampled_from([np.float16(0.5), np.float16(1), None])),
    (pa.list_(pa.int8(), 2), st.none() | st.lists(_numbers, min_size=2, max_size=2)),
    (pa.list_(pa.list_(pa.string())), st.none() | st.lists(st.none() | st.lists(_words, max_size=2), max_size=2)),
    (pa.map_(pa.string(), pa.int64()), st.none() | st.lists(st.tuples(st.sampled_from("ab"), _numbers), max_size=2)),
    (ENTITIES, st.none() | st.lists(_entity, max_size=2)),
]


@pytest.mark.parametrize(("kind", "values"), VALUES, ids=lambda v: str(v) if isinstance(v, pa.DataType) else "")
def test_differs_says_what_python_says(kind: pa.DataType, values: st.SearchStrategy[Any]) -> None:
    @given(st.lists(st.tuples(values, values), max_size=8), st.integers(0, 2))
    @settings(max_examples=60, deadline=None)
    def check(pairs: list[tuple[Any, Any]], skip: int) -> None:
        left, right = (pa.array([p[i] for p in pairs], kind).slice(skip) for i in (0, 1))
        assert differs(left, right).tolist() == [a != b for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True)]

    check()


def _compare(kind: pa.DataType, before: list[Any], after: list[Any]) -> Comparison:
    comparison = Comparison([pa.field("x", kind)])
    tables = [pa.table({"x": pa.array(side, kind)}) for side in (before, after)]
    rows = np.arange(min(len(before), len(after)))
    comparison.add(*tables, (rows, rows))
    return comparison


def test_labels_and_their_shifts() -> None:
    kind = pa.struct([("label", pa.string()), ("score", pa.float32())])
    before = [{"label": label, "score": 0.5} for label in ("sea", "sea", "land", None)]
    after = [{"label": label, "score": 0.5} for label in ("sea", "land", "land", "sea", "sky")]
    found = _compare(kind, before, after)
    assert found.changed == 2
    report = found.report()["labels"]["x"]
    counts = {"land": (1, 2), "sea": (2, 2), "sky": (0, 1)}
    assert report["by_label"] == {label: {"before": a, "after": b} for label, (a, b) in counts.items()}
    assert report["shifted"] == 2
    shifts = {(s["before"], s["after"]): s["rows"] for s in report["shifts"]}
    assert shifts == {("sea", "land"): 1, ("None", "sea"): 1}


def test_labels_of_many_and_entities_are_counted() -> None:
    many = pa.struct([("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
    found = _compare(many, [{"labels": ["a", "b"], "scores": [1, 1]}], [{"labels": ["b"], "scores": [1, 1]}]).report()
    assert found["labels"]["x"]["by_label"] == {"a": {"before": 1, "after": 0}, "b": {"before": 1, "after": 1}}
    one = {"start": 0, "label": "LOC", "score": 0.5}
    entities = _compare(ENTITIES, [[one, one], []], [[one], [{**one, "label": "PER"}]]).report()["entities"]["x"]
    assert (entities["before"], entities["after"]) == (2, 2)
    assert entities["by_label"] == {"LOC": {"before": 2, "after": 1}, "PER": {"before": 0, "after": 1}}


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.int8()])
def test_cosines_of_vectors(kind: pa.DataType) -> None:
    rng = np.random.default_rng(0)
    before, after = (np.concatenate([rng.integers(-9, 9, (5, 4)), np.zeros((1, 4))]) for _ in range(2))
    expected = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before[:5], after[:5], strict=True)] + [1.0]
    sides = [
        pa.array([[kind_value(kind, v) for v in row] for row in side] + [None], pa.list_(kind, 4)) for side in (before, after)
    ]
    comparison = Comparison([pa.field("x", sides[0].type)])
    rows = np.arange(7)
    comparison.add(*(pa.table({"x": side}) for side in sides), (rows, rows))
    found = comparison.report()["vectors"]["x"]
    assert found["rows"] == 6
    assert found["mean_cosine"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["min_cosine"] == pytest.approx(min(expected), abs=1e-6)


def kind_value(kind: pa.DataType, value: float) -> Any:
    """As Arrow wants numbers of a type."""
    return int(value) if pa.types.is_integer(kind) else np.float16(value) if kind == pa.float16() else float(value)
