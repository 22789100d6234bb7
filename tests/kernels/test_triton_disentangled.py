"""The fused kernel of disentangled attention, in Triton's interpreter, gives what torch and transformers give."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from operators.attention import disentangled
from operators.attention.disentangled import Positions
from operators.attention.varlen import Projected, Windows
from operators.models.deberta import Deberta
from operators.packing import Pack
from tests.operators.models.test_deberta import CONFIGS, make, pack, reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("`make test-kernels` runs these, in an environment of their own", allow_module_level=True)

from operators.attention import triton_disentangled as fused

HEADS, SIZE, SCALE = 2, 16, 0.2
MIXED = [80, 40, 40, 33, 17, 16, 5, 5, 2, 1]
ORDERS = {"sorted": MIXED, "any order, with empty windows": [3, 40, 0, 17, 80, 0, 1], "one": [40]}
TERMS = ["c2p p2c", "c2p", "p2c", ""]
MODELS = [name for name in CONFIGS if not any(other in name for other in ("convolution", "embeddings", "absolute"))]
"""Those that differ in attention."""


def windows(lengths: list[int]) -> Windows:
    """Those of a pack of these lengths."""
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    nothing = Pack(input_ids=np.zeros(ends[-1], np.int32), cu_seqlens=ends, segments=np.arange(len(lengths)))
    return Windows.of(nothing, torch.device("cpu"))


def projected(lengths: list[int], dtype: torch.dtype = torch.float32) -> Projected:
    """Queries, keys and values of one product, as views that are not contiguous."""
    qkv = torch.randn(sum(lengths), HEADS, 3, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, k, v = qkv.unbind(2)
    return q, k, v


def positions(terms: str, reach: int, dtype: torch.dtype = torch.float32) -> Positions:
    """Random ones by distance for windows of `reach` tokens."""
    keys, queries = torch.randn(2, HEADS, 2 * reach - 1, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    return Positions(keys if "c2p" in terms else None, queries if "p2c" in terms else None)


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("order", ORDERS)
def test_like_torch(order: str, terms: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_BLOCK", block)
    lengths = ORDERS[order]
    inputs = (projected(lengths), windows(lengths), positions(terms, max(lengths)), SCALE)
    torch.testing.assert_close(fused.attend(*inputs), disentangled.attend(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [1, 7, 40])
def test_tables_that_reach_further(more: int) -> None:
    inputs = (projected(MIXED), windows(MIXED), positions("c2p p2c", max(MIXED) + more), SCALE)
    torch.testing.assert_close(fused.attend(*inputs), disentangled.attend(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scores", [1, HEADS * 40 * 80, 2 * HEADS * 80 * 160])
def test_the_bound_of_memory_changes_nothing(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (projected(MIXED), windows(MIXED), positions("c2p p2c", max(MIXED)), SCALE)
    whole = fused.attend(*inputs)
    sizes = []
    products = fused._products

    def watched(*arguments: Any) -> Tensor:
        made = products(*arguments)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(fused, "_products", watched)
    monkeypatch.setattr(fused, "_SCORES", scores)
    torch.testing.assert_close(fused.attend(*inputs), whole, rtol=0, atol=1e-5)
    alone = HEADS * 80 * 160  # the longest window
    assert max(sizes) <= max(alone, scores)


def test_half_precision_loses_no_more_than_torch() -> None:
    exact, half = (
        (projected(MIXED, dtype), windows(MIXED), positions("c2p p2c", 80, dtype), SCALE)
        for dtype in (torch.float32, torch.float16)
    )
    ours, loss_of_torch = fused.attend(*half), error(disentangled.attend(*half), disentangled.attend(*exact))
    assert ours.dtype == torch.float16
    assert error(ours, disentangled.attend(*exact)) < 1.05 * loss_of_torch


def error(attended: Tensor, exact: Tensor) -> float:
    """Root of the mean square of what differs."""
    return float((attended.float() - exact).square().mean().sqrt())


def test_every_row_is_written() -> None:
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        inputs = (projected(MIXED), windows(MIXED), positions("c2p p2c", max(MIXED)), SCALE)
        assert torch.empty(1).isnan()
        assert fused.attend(*inputs).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by numpy, which the interpreter runs on
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_in_their_window_and_show(broken: float) -> None:
    inputs = (projected(MIXED), windows(MIXED), positions("c2p p2c", max(MIXED)), SCALE)
    whole = fused.attend(*inputs)
    inputs[0][1][100, 0] = broken  # a key of the second window, for the first head
    attended = fused.attend(*inputs)
    assert not attended[80:120, 0].isfinite().all()
    attended[80:120, 0] = whole[80:120, 0]
    torch.testing.assert_close(attended, whole, rtol=0, atol=0)


@pytest.mark.parametrize("term", ["c2p", "p2c"])
def test_a_table_off_by_one_distance_shows(term: str) -> None:
    qkv, spread = projected(MIXED), windows(MIXED)
    table = positions("c2p p2c", 80)
    keys, queries = table.keys, table.queries
    assert keys is not None
    assert queries is not None
    rolled = Positions(keys.roll(1, 1), queries) if term == "c2p" else Positions(keys, queries.roll(1, 1))
    wrong = fused.attend(qkv, spread, rolled, SCALE) - disentangled.attend(qkv, spread, table, SCALE)
    assert wrong.abs().max() > 0.1


@pytest.mark.parametrize(("name", "block"), [*((name, 16) for name in MODELS), ("v1", 32), ("v3", 32), ("v3", 64)])
def test_whole_models_like_transformers(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_BLOCK", block)
    monkeypatch.setattr(disentangled, "_kernel_takes", lambda queries: True)
    kernel, launches = fused._attend_group, []
    monkeypatch.setattr(fused, "_attend_group", lambda *arguments: launches.append(kernel(*arguments)))
    model, packed = make(name), pack([40, 40, 17, 17, 2, 1])
    with torch.inference_mode():
        difference = Deberta(model)(packed) - reference(model, packed)
    assert len(launches) == len(model.encoder.layer) * len(windows(packed.lengths.tolist()).groups)
    assert difference.abs().max() <= 2e-4


@pytest.mark.parametrize(
    ("dtype", "size", "capability", "taken"),
    [
        (torch.float16, 64, (9, 0), True),
        (torch.bfloat16, 16, (8, 0), True),
        (torch.float32, 64, (9, 0), False),
        (torch.float16, 48, (9, 0), False),
        (torch.float16, 256, (9, 0), False),
        (torch.bfloat16, 64, (7, 5), False),
    ],
)
def test_what_the_kernel_takes(
    dtype: torch.dtype, size: int, capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        assert disentangled._kernel_takes(torch.empty(8, 2, size, dtype=dtype, device="cuda")) == taken
        assert not disentangled._kernel_takes(torch.empty(8, 2, size, dtype=dtype))
