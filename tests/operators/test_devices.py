"""Choosing a device and a precision, each with its reason."""

from __future__ import annotations

import pytest
import torch

from operators.devices import choose, default_token_budget, resolve_precision, set_threads


@pytest.mark.parametrize(
    ("asked", "offered", "kind", "count"),
    [
        ("auto", {"npu": 2, "cuda": 4}, "npu", 2),
        ("auto", {"npu": 0, "cuda": 4}, "cuda", 4),
        ("auto", {}, "cpu", 1),
        ("cuda", {"npu": 2, "cuda": 4}, "cuda", 4),
        ("cpu", {"npu": 2, "cuda": 4}, "cpu", 1),
    ],
)
def test_a_clusters_devices(asked: str, offered: dict[str, int], kind: str, count: int) -> None:
    device = choose(asked, offered)
    assert (device.kind, device.count) == (kind, count)
    assert device.reason


def test_auto_on_this_machine_is_what_torch_sees() -> None:
    device = choose("auto")
    if device.kind == "cpu":
        assert torch.cuda.device_count() == 0
        assert "no npu: torch_npu is not installed" in device.reason
        assert f"no cuda: torch {torch.__version__} sees no device" in device.reason
    else:
        assert str(device.count) in device.reason


@pytest.mark.parametrize("kind", ["npu", "cuda"])
def test_an_absent_device_says_what_to_do(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind!r} was asked for, but it is not there .*no {kind}: .*choose auto or cpu"):
        choose(kind, {})


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'tpu' is unknown"):
        choose("tpu")


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


def test_budgets_and_threads() -> None:
    assert default_token_budget("cpu") < default_token_budget("cuda")
    before = torch.get_num_threads()
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(before)
