"""Attention on NPUs: values by a stand-in that computes what CANN documents, arguments of whole passes on a made-up device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from operators.attention import disentangled, npu, varlen
from operators.attention.disentangled import Positions
from operators.attention.varlen import Projected, Windows
from operators.models.deberta import Deberta
from operators.models.packed import Packed
from operators.packing import Pack
from tests.operators.attention.cann import Kernel
from tests.operators.attention.npu_models import HEADS, LAYERS, LENGTHS, MODELS, SIZE, make, pack

CPU = torch.device("cpu")
LONG = [600, 600, 257, 60, 60, 9, 2, 1, 1]
SCALE = 0.4
HAS_NPU = hasattr(torch, "npu") and torch.get_device_module("npu").is_available()
needs_npu = pytest.mark.skipif(not HAS_NPU, reason="needs an NPU")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The stand-in, which tensors on the CPU are sent to."""
    made = Kernel(compute=True)
    monkeypatch.setitem(sys.modules, "torch_npu", made)
    monkeypatch.setattr(npu, "is_npu", lambda x: True)
    return made


def projected(lengths: list[int]) -> Projected:
    """Queries, keys and values that make attention far from uniform."""
    q, k, v = torch.randn(3, sum(lengths), HEADS, SIZE, generator=torch.Generator().manual_seed(0))
    return 2 * q, k, v


def positions(length: int) -> Positions:
    """Random embeddings by distance."""
    keys, queries = torch.randn(2, HEADS, 2 * length - 1, SIZE, generator=torch.Generator().manual_seed(1)) / 2
    return Positions(keys, queries)


def local(qkv: Projected, lengths: list[int], reach: int | None, device: torch.device = CPU) -> Tensor:
    """By `varlen.attend`, back on the CPU in float32."""
    q, k, v = (x.to(device) for x in qkv)
    return varlen.attend((q, k, v), Windows.of(pack(lengths), device), SCALE, reach).float().cpu()


def near(actual: Tensor, expected: Tensor, error: float = 1e-5) -> None:
    """Equal but for this error."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=error)


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("reach", [None, 0, 8, 255, 256, 598, 599])
def test_packs_like_on_other_devices(
    reach: int | None, band: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = projected(LONG)
    expected = local(qkv, LONG, reach)
    kernel: Kernel = request.getfixturevalue("kernel")
    monkeypatch.setattr(npu, "BAND_MODE", band)
    near(local(qkv, LONG, reach), expected)
    as_pack = reach in (None, 599) or band
    assert {call.input_layout for call in kernel.calls} == {"TND" if as_pack else "BNSD"}
    assert len(kernel.calls) == (1 if as_pack else 3 + 2 + 1 + 1 + 1 + 1)  # blocks of each length


def test_many_windows_take_several_calls(request: pytest.FixtureRequest) -> None:
    lengths = [5] * 700 + [3] * 299 + [2] * 2 + [1] * 1_000
    qkv = projected(lengths)
    expected = local(qkv, lengths, None)
    kernel: Kernel = request.getfixturevalue("kernel")
    near(local(qkv, lengths, None), expected)
    assert [len(call.actual_seq_qlen or []) for call in kernel.calls] == [1_000, 1_000, 1]


def test_empty_windows_are_left_out(kernel: Kernel) -> None:
    assert local(projected([3, 2]), [3, 2, 0, 0], None).shape == (5, HEADS, SIZE)
    assert [call.actual_seq_qlen for call in kernel.calls] == [[3, 5]]


def test_one_token_more_or_less_shows(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = projected(LONG)
    for band in (False, True):
        monkeypatch.setattr(npu, "BAND_MODE", band)
        right = local(qkv, LONG, 8)
        assert all((local(qkv, LONG, wrong) - right).abs().max() > 0.01 for wrong in (7, 9))


@pytest.mark.parametrize("scores", [1, 2**26])
def test_positions_like_on_other_devices(scores: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (projected(LENGTHS), Windows.of(pack(LENGTHS), CPU), positions(max(LENGTHS)), SCALE)
    expected = disentangled.attend(*arguments)
    kernel: Kernel = request.getfixturevalue("kernel")
    monkeypatch.setattr(disentangled, "_SCORES_ON_CPU", scores)
    near(disentangled.attend(*arguments), expected)
    assert len(kernel.calls) == (len(LENGTHS) if scores == 1 else len(set(LENGTHS)))
    assert {(call.input_layout, call.scale) for call in kernel.calls} == {("BNSD", 1.0)}


def test_positions_stay_within_fp16(kernel: Kernel) -> None:
    """A score of 30,000 fits; divided by a scale of 0.1, as the kernel's formula would have it, it does not."""
    q = torch.full((1, 1, 2, SIZE), 4.0, dtype=torch.float16)
    bias = torch.tensor([[[[0, 30_000], [0, 30_000]]]], dtype=torch.float16)
    v = torch.arange(2 * SIZE, dtype=torch.float16).view(1, 1, 2, SIZE)
    attended = npu.attend_biased((q, q, v), bias, 0.1)
    near(attended, v[:, :, 1:].expand_as(v), 0)


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_like_transformers(name: str, band: bool, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "BAND_MODE", band)
    monkeypatch.setattr(npu, "_BLOCK", 16)
    windows = pack(LENGTHS)
    forward: Callable[[Pack], Tensor] = (Deberta if "DeBERTa" in name else Packed)(make(name))
    with torch.inference_mode():
        near(forward(windows), padded(make(name, "eager"), windows))
    assert kernel.calls


def padded(model: Any, windows: Pack) -> Tensor:
    """float [T, H] by transformers' own attention."""
    mask = torch.arange(windows.max_length) < torch.from_numpy(windows.lengths)[:, None]
    ids = torch.full(mask.shape, model.config.pad_token_id)
    ids[mask] = torch.from_numpy(windows.input_ids).long()
    hidden: Tensor = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return hidden[mask]


@pytest.fixture(scope="module")
def fake() -> dict[str, Any]:
    """What fake_npu.py prints. It renames a backend of its process for good, hence one of its own."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-W", "error", "-m", "tests.operators.attention.fake_npu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_the_made_up_device_is_chosen_and_cannot_be_read(fake: dict[str, Any]) -> None:
    assert fake["chosen"] == ["npu", "npu"]
    assert fake["refused"] == ["cpu", "item", "tolist"]


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "ModernBERT, band mode"])
def test_whole_passes_ask_for_packs(name: str, fake: dict[str, Any]) -> None:
    calls = fake["calls"][name]
    assert len(calls) == LAYERS
    for layer, call in enumerate(calls):
        assert (call["device"], call["dtype"]) == ("npu:0", "torch.bfloat16")
        assert (call["input_layout"], call["head_num"], call["scale"]) == ("TND", HEADS, SIZE**-0.5)
        assert call["query"] == call["key"] == call["value"] == [sum(LENGTHS), HEADS, SIZE]
        assert call["actual_seq_qlen"] == call["actual_seq_kvlen"] == np.cumsum(LENGTHS).tolist()
        band = (call["sparse_mode"], call["pre_tockens"], call["next_tockens"], call["atten_mask"])
        whole = (0, 2**31 - 1, 2**31 - 1, None)
        assert band == (whole if layer == 0 or "ModernBERT" not in name else (4, 8, 8, [2048, 2048]))


def test_a_pass_with_local_layers_asks_for_masked_blocks(fake: dict[str, Any]) -> None:
    first, *others = fake["calls"]["ModernBERT"]
    assert first["input_layout"] == "TND"
    lengths = sorted(set(LENGTHS), reverse=True)
    assert [call["query"] for call in others] == [[LENGTHS.count(n), HEADS, n, SIZE] for n in lengths] * (LAYERS - 1)
    for call in others:
        length = call["query"][2]
        assert (call["input_layout"], call["scale"], call["sparse_mode"]) == ("BNSD", SIZE**-0.5, 0)
        assert call["atten_mask"] == [length, length]
        assert (call["device"], call["dtype"]) == ("npu:0", "torch.bfloat16")


@pytest.mark.parametrize("name", [name for name in MODELS if "DeBERTa" in name])
def test_a_deberta_asks_for_batches_with_positions(name: str, fake: dict[str, Any]) -> None:
    calls = fake["calls"][name]
    lengths = sorted(set(LENGTHS), reverse=True)
    assert [call["query"] for call in calls] == [[LENGTHS.count(n), HEADS, n, SIZE] for n in lengths] * LAYERS
    for call in calls:
        assert (call["input_layout"], call["scale"], call["atten_mask"]) == ("BNSD", 1.0, None)
        assert call["pse"] == [*call["query"][:3], call["query"][2]]
        assert (call["device"], call["dtype"]) == ("npu:0", "torch.float16")


def test_a_pass_over_many_windows_stays_within_the_limit(fake: dict[str, Any]) -> None:
    calls = fake["calls"]["BERT, many windows"]
    assert [len(call["actual_seq_qlen"]) for call in calls] == [1_000, 1_000, 500] * LAYERS


@needs_npu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("reach", [None, 8, 64])
def test_on_a_device(reach: int | None, band: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows longer than the compressed mask of band mode."""
    monkeypatch.setattr(npu, "BAND_MODE", band)
    lengths = [5_000, *LONG]
    q, k, v = (x.to(dtype) for x in projected(lengths))
    expected = local((q.float(), k.float(), v.float()), lengths, reach)
    near(local((q, k, v), lengths, reach, torch.device("npu:0")), expected, 0.03)


@needs_npu
@pytest.mark.parametrize("name", MODELS)
def test_models_on_a_device(name: str) -> None:
    windows = pack(LENGTHS)
    model = make(name).to("npu:0")
    forward: Callable[[Pack], Tensor] = (Deberta if "DeBERTa" in name else Packed)(model)
    with torch.inference_mode():
        near(forward(windows).cpu(), padded(make(name, "eager"), windows), 0.02)
