"""What `precision: auto` becomes, and why."""

from __future__ import annotations

import pytest

from operators import precision
from operators.precision import HALF_SIMILARITY, resolve_precision


@pytest.mark.parametrize(
    ("asked", "kind", "model_type", "name"),
    [
        ("auto", "cpu", "bert", "fp32"),
        ("auto", "cpu", "deberta-v2", "fp32"),
        ("auto", "cuda", "bert", "bf16"),
        ("auto", "npu", "xlm-roberta", "bf16"),
        ("auto", "cuda", "deberta-v2", "fp16"),
        ("fp32", "cuda", "bert", "fp32"),
    ],
)
def test_precision(asked: str, kind: str, model_type: str, name: str) -> None:
    resolved, reason = resolve_precision(asked, kind, model_type)
    assert resolved == name
    assert reason


def test_int8_is_refused() -> None:
    with pytest.raises(ValueError, match="int8"):
        resolve_precision("int8", "cpu", "bert")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "npu"])
def test_more_similarity_than_half_precision_keeps_needs_float32(kind: str) -> None:
    resolved, reason = resolve_precision("auto", kind, "bert", HALF_SIMILARITY + 0.0001)
    assert resolved == "fp32"
    assert "0.9999" in reason


@pytest.mark.parametrize(("half", "name"), [(2e11, "bf16"), (1.1e11, "fp32")])
def test_a_cpu_is_measured(half: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure_peak", lambda kind, precision: half if precision == "bf16" else 1e11)
    resolved, reason = resolve_precision("auto", "cpu", "bert", 0.999)
    assert resolved == name
    assert "100 in fp32" in reason


def test_the_speed_of_this_cpu_is_told() -> None:
    assert "GFLOP/s" in resolve_precision("auto", "cpu", "bert", 0.999)[1]
