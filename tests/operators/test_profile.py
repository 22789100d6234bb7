from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.profile import MOST_LABELS, fold, lengths, profile, score_bins
from tests.head_cases import CASES, HEADS, Worker, case_model, masked

ONE = pa.struct([("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])
SEVERAL = pa.struct([("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
ENTITIES = pa.list_(pa.struct([("start", pa.int32()), ("label", pa.string()), ("score", pa.float32()), ("text", pa.string())]))
ANSWER = pa.struct([("answer", pa.string()), ("score", pa.float32())])

scores = st.floats(0, 1, width=32)
one = st.none() | st.builds(lambda name, s: {"label": name, "score": max(s), "scores": s}, st.sampled_from("abc"), st.lists(
    scores, min_size=1, max_size=4))  # fmt: skip
several = st.builds(lambda names, s: {"labels": names, "scores": s}, st.lists(st.sampled_from("abc"), unique=True), st.lists(
    scores, min_size=3, max_size=3))  # fmt: skip
entity = st.builds(lambda name, s: {"start": 0, "label": name, "score": s, "text": "moon"}, st.sampled_from("abc"), scores)
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (ONE, one),
    (SEVERAL, several),
    (ENTITIES, st.lists(entity, max_size=4)),
    (ANSWER, st.sampled_from([None, {"answer": "sea", "score": 0.5}, {"answer": None, "score": None}])),
    (pa.list_(pa.float32(), 3), st.none() | st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3)),
    (pa.float32(), st.none() | st.floats(-1e4, 1e4, width=32)),
]


@pytest.mark.parametrize(("type_", "values"), COLUMNS, ids=str)
def test_statistics_add_up_over_pieces(type_: pa.DataType, values: st.SearchStrategy[Any]) -> None:
    @given(st.lists(st.lists(values, max_size=6), min_size=1, max_size=4))
    def check(pieces: list[list[Any]]) -> None:
        total: Counter[str] = Counter()
        for piece in pieces:
            total.update(profile(pa.array(piece, type_)))  # type: ignore[arg-type]
        whole = profile(pa.chunked_array([pa.array(piece, type_) for piece in pieces], type_))
        assert {k: v for k, v in total.items() if v} == pytest.approx(whole)

    check()


def test_numbers_of_a_classifier() -> None:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet([0.5, 1, 2], 500).astype(np.float32)
    names = [["sad", "glad", "calm"][i] for i in shares.argmax(axis=1)]
    column = pa.array([{"label": n, "score": s.max(), "scores": s} for n, s in zip(names, shares, strict=True)], ONE)
    found = profile(column)
    assert {k[6:]: v for k, v in found.items() if k.startswith("label:")} == Counter(names)
    assert found["sum:score"] == pytest.approx(shares.max(axis=1).sum(dtype=np.float64))
    entropy = -(shares * np.log(shares)).sum(axis=1) / np.log(3)
    assert found["sum:entropy"] == pytest.approx(entropy.sum(), rel=1e-5)
    expected = np.bincount((shares.max(axis=1) * 20).astype(int).clip(0, 19), minlength=20)
    assert [found.get(f"score:{i}", 0) for i in range(20)] == expected.tolist()


def test_numbers_of_entities_count_documents_and_items() -> None:
    first = [{"start": 0, "label": name, "score": 0.5, "text": "secret"} for name in ("PER", "PER", "LOC")]
    found = profile(pa.array([first, [], first[:1]], ENTITIES))
    assert (found["label:PER"], found["label:LOC"]) == (2, 1)  # documents that have one
    assert (found["items:PER"], found["items:LOC"]) == (3, 1)
    assert (found["count:0"], found["count:1"], found["count:2"]) == (1, 1, 1)
    assert not [name for name in found if "secret" in name]


def test_numbers_of_vectors() -> None:
    vectors = np.random.default_rng(2).normal(size=(300, 16)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16)
    found, doubled = profile(column), profile(pa.FixedSizeListArray.from_arrays(pa.array(2 * vectors.reshape(-1)), 16))
    norms = np.linalg.norm(vectors, axis=1)
    assert found["sum:norm"] == pytest.approx(norms.sum(), rel=1e-5)
    assert found["sum:norm2"] == pytest.approx((norms**2).sum(), rel=1e-5)
    assert {k: v for k, v in doubled.items() if "direction" in k} == {k: v for k, v in found.items() if "direction" in k}
    shifted = {int(k[5:]) for k in doubled if k.startswith("norm:")}
    assert shifted == {int(k[5:]) + 8 for k in found if k.startswith("norm:")}
    unit = vectors / norms[:, None]
    assert profile(pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), 16))["norm:0"] == 300
    scaled = pa.list_(pa.field("item", pa.int8(), metadata={"scale": "0.1"}), 2)
    assert profile(pa.array([[30, 40]], scaled))["sum:norm"] == pytest.approx(5)


def test_answers_are_counted_and_never_read() -> None:
    found = profile(pa.array([{"answer": "secret", "score": 0.9}, {"answer": None, "score": None}], ANSWER))
    assert (found["null:yes"], found["null:no"]) == (1, 1)
    assert not [name for name in found if "secret" in name]


@given(st.floats(-1e6, 1e6))
def test_score_bins_are_bounded_and_in_order(score: float) -> None:
    here, next_ = score_bins(np.array([score, score + 1.0]))
    assert -14 <= here <= 29
    assert here <= next_ or score < 0  # below zero, bins grow with the distance
    assert (0 <= here <= 19) == (0 <= score <= 1)


def test_lengths_are_powers_of_two() -> None:
    assert lengths("n", pa.array([0, 1, 2, 3, 4, 7, 8])) == {"n:0": 1, "n:1": 1, "n:2": 2, "n:3": 2, "n:4": 1}


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 9), max_size=200), st.integers(0, 200))
def test_labels_fold_alike_however_they_are_split(counts: dict[str, float], cut: int) -> None:
    names = list(counts)
    parts = [fold({n: counts[n] for n in part}, always=True) for part in (names[:cut], names[cut:])]
    total = Counter(parts[0])
    total.update(parts[1])  # type: ignore[arg-type]
    whole = fold(counts, always=True)
    assert total == Counter(whole)
    assert len(whole) <= MOST_LABELS
    assert sum(whole.values()) == sum(counts.values())
    assert fold(counts) == (dict(counts) if len(counts) <= MOST_LABELS and whole != counts else whole)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_statistics_without_text(head: str, tmp_path: Path) -> None:
    case = CASES[head]
    worker = Worker(case_model(tmp_path, head), head, case.settings)
    column = worker.run(masked(case.texts, worker), case.columns).values["task"]
    found = profile(column)
    measured = {name.split(":")[0] for name in found}
    assert measured & {"score", "norm", "count", "label"}
    assert sum(found.get(f"null:{key}", 0) for key in ("yes", "no")) == len(column)
    labels = {name.split(":", 1)[1] for name in found if name.startswith(("label:", "items:"))}
    assert labels <= {"a", "b", "c", "PER", "LOC", "sea", "the moon", "0", "1"}
    bins = [name.split(":")[1] for name in found if not name.startswith(("label:", "items:", "sum:", "null:"))]
    assert all(bin_.lstrip("-").isdigit() for bin_ in bins)
