"""The measured speed of matrix products is a speed: more than nothing, and less than any CPU's."""

from __future__ import annotations

import pytest

from operators.peak import measure_peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_has_a_peak(precision: str) -> None:
    peak = measure_peak("cpu", precision)
    assert peak is not None
    assert 1e8 < peak < 1e15


def test_other_precisions_have_none() -> None:
    assert measure_peak("cpu", "int8") is None
