"""Choosing a device and a precision, each with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from operators.devices import (
    choose,
    default_token_budget,
    free_memory,
    is_device_lost,
    is_out_of_memory,
    release_memory,
    resolve_compile,
    set_threads,
)


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


def test_a_torch_npu_that_cannot_be_loaded_is_no_device_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_npu.py").write_text('raise ImportError("libhccl.so: cannot open shared object file\\nmore")')
    monkeypatch.syspath_prepend(tmp_path)
    why = "torch_npu cannot be loaded: ImportError: libhccl.so: cannot open shared object file"
    with pytest.raises(ValueError, match=f"no npu: {why}[^\\n]*choose auto or cpu"):
        choose("npu")
    device = choose("auto")
    assert device.kind == ("cuda" if torch.cuda.device_count() else "cpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'tpu' is unknown"):
        choose("tpu")


def test_budgets_and_threads() -> None:
    assert default_token_budget("cpu") < default_token_budget("cuda")
    before = torch.get_num_threads()
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(before)


def test_compiles_on_cuda_for_long_jobs_and_where_asked() -> None:
    assert not resolve_compile("auto", "torch", "cuda", 1000)
    assert resolve_compile("auto", "torch", "cuda", 1e6)
    assert resolve_compile("on", "torch", "cuda", 1)
    assert not resolve_compile("off", "torch", "cuda", 1e6)
    assert not resolve_compile("auto", "torch", "cpu", 1e6)
    assert not resolve_compile("auto", "onnx", "cuda", 1e6)
    for backend, kind in (("torch", "cpu"), ("torch", "npu"), ("onnx", "cuda")):
        with pytest.raises(ValueError, match=f"backend {backend} on {kind}: choose auto or off"):
            resolve_compile("on", backend, kind, 1)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: misaligned address"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("a shape does not fit"), False),
        (ValueError("illegal memory access"), False),
    ],
)
def test_errors_after_which_a_device_cannot_be_used(error: Exception, lost: bool) -> None:
    assert is_device_lost(error) is lost


def test_memory() -> None:
    assert free_memory(torch.device("cpu")) is None
    release_memory(torch.device("cpu"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("a shape does not fit"))
