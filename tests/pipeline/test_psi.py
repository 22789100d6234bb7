from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.psi import REST, chi_square, compare

counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 500), min_size=1)


@given(counts, counts)
def test_the_index_is_positive_and_symmetric(before: dict[str, float], now: dict[str, float]) -> None:
    assume(sum(before.values()) and sum(now.values()))
    pair = compare(before, now)
    assert pair.psi >= 0
    assert pair.psi == pytest.approx(compare(now, before).psi)
    assert pair.before.sum() == sum(before.values())
    assert pair.now.sum() == sum(now.values())


@given(counts)
def test_the_index_of_equals_is_zero(before: dict[str, float]) -> None:
    assume(sum(before.values()))
    assert compare(before, before).psi == pytest.approx(0)


def test_the_index_is_the_formula() -> None:
    pair = compare({"a": 5000, "b": 5000}, {"a": 8000, "b": 2000})
    assert pair.psi == pytest.approx(0.3 * np.log(0.8 / 0.5) - 0.3 * np.log(0.2 / 0.5), rel=1e-3)
    assert pair.moved(1) == {"b": (0.5, 0.2)}


def test_bins_of_a_few_documents_are_compared_together() -> None:
    pair = compare({"a": 9000, "b": 3, "c": 2}, {"a": 200, "d": 1})
    assert pair.names == ("a", REST)
    assert pair.before.tolist() == [9000, 5]
    assert pair.now.tolist() == [200, 1]


@pytest.mark.parametrize(
    ("share", "degrees", "table"),
    [(0.95, 1, 3.841), (0.99, 1, 6.635), (0.999, 5, 20.515), (0.99, 19, 36.191), (0.999, 30, 59.703)],
)
def test_quantiles_are_those_of_the_tables(share: float, degrees: int, table: float) -> None:
    assert chi_square(share, degrees) == pytest.approx(table, rel=0.05)


def test_a_document_with_many_labels_is_one_observation() -> None:
    few, many = compare({"a": 300, "b": 300}, {"a": 300, "b": 300}), compare({"a": 3000, "b": 3000}, {"a": 3000, "b": 3000})
    assert many.noise(600, 600, 1) == pytest.approx(few.noise(600, 600, 1))
    assert few.noise(100, 100, 1) > few.noise(600, 600, 1)
