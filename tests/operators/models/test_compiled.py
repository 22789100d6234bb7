"""Compiled layers give what the plain ones give, from one graph for all packs of one size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModel

from operators.models import compiled, deberta, packed
from operators.models.compiled import Compiled, fixed_size
from operators.models.families import DEBERTA
from operators.packing import Pack
from tests.operators.conftest import MakeModel

OFTEN = 3


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graphs of other tests; a size is common soon."""
    monkeypatch.setattr(compiled, "_OFTEN", OFTEN)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _pack(seed: int, tokens: int) -> Pack:
    """Windows of 3 to 39 tokens, the longest first."""
    random = np.random.default_rng(seed)
    ends = np.append(np.cumsum(random.integers(3, 40, tokens)), tokens)
    lengths = -np.sort(-np.diff(ends[: np.searchsorted(ends, tokens) + 1].clip(max=tokens), prepend=0))
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Pack(random.integers(5, 90, bounds[-1]).astype(np.int32), bounds, np.arange(len(lengths)))


def _forward(path: Any, model_type: str) -> tuple[Any, Any]:
    """A fresh model and its packed forward."""
    attention = None if model_type in DEBERTA else packed.ATTENTION
    model = AutoModel.from_pretrained(str(path), attn_implementation=attention).eval()
    return (deberta.Deberta if model_type in DEBERTA else packed.Packed)(model), model


@torch.inference_mode()
@pytest.mark.parametrize(
    ("model_type", "graphs", "backend"),
    # One for each kind of layer: ModernBERT's global and local ones differ. DeBERTa: three parts of a layer.
    [
        ("bert", 1, "aot_eager"),
        ("distilbert", 1, "eager"),
        ("albert", 1, "eager"),
        ("modernbert", 2, "aot_eager"),
        ("deberta", 3, "eager"),
        ("deberta-v2", 3, "aot_eager"),
    ],
)
def test_one_graph_for_all_packs_of_a_size(model_type: str, graphs: int, backend: str, make_model: MakeModel) -> None:
    path = make_model(model_type=model_type)
    plain, _ = _forward(path, model_type)
    forward = Compiled(*_forward(path, model_type), backend=backend)
    for seed in range(OFTEN + 5):
        pack = _pack(seed, 250 + seed % 6)
        hidden = forward(pack)
        assert hidden.shape == (len(pack.input_ids), 32)
        torch.testing.assert_close(hidden, plain(pack), rtol=0, atol=1e-5)
        assert counters["stats"]["unique_graphs"] == (graphs if seed + 1 >= OFTEN else 0)
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]


@torch.inference_mode()
def test_only_sizes_that_come_often_are_compiled_and_not_many_of_them(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_SIZES", 2)
    path = make_model()
    plain, _ = _forward(path, "bert")
    forward = Compiled(*_forward(path, "bert"), backend="eager")
    for tokens in (100, 120, 200, 300):
        for seed in range(OFTEN - 1 if tokens == 100 else OFTEN):
            torch.testing.assert_close(forward(_pack(seed, tokens)), plain(_pack(seed, tokens)), rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2


@torch.inference_mode()
def test_a_compiler_that_fails_is_left_alone(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Libraries that other tests load set up logging anew, and switch off the loggers that are there.
    monkeypatch.setattr(logging.getLogger(compiled.__name__), "disabled", False)
    caplog.set_level(logging.WARNING, compiled.__name__)
    tries: list[Any] = []

    def broken(graph: Any, inputs: list[Tensor]) -> Any:
        tries.append(graph)
        raise RuntimeError("no compiler")

    path = make_model()
    plain, _ = _forward(path, "bert")
    forward = Compiled(*_forward(path, "bert"), backend=broken)
    for seed in range(OFTEN + 3):
        torch.testing.assert_close(forward(_pack(seed, 250)), plain(_pack(seed, 250)), rtol=0, atol=1e-5)
    assert len(tries) == 1
    assert [r.getMessage() for r in caplog.records if r.name == compiled.__name__] == [
        "torch.compile failed (BackendCompilerFailed); going on without it"
    ]


@torch.inference_mode()
def test_a_pack_that_fails_is_not_the_compilers_fault(make_model: MakeModel) -> None:
    forward = Compiled(*_forward(make_model(), "bert"), backend="eager")
    bad = Pack(np.full(250, 10**6, np.int32), np.array([0, 40, 70, 100, 130, 160, 190, 220, 250], np.int32), np.arange(8))
    for _ in range(OFTEN + 1):
        with pytest.raises(IndexError):
            forward(bad)
    forward(_pack(0, 250))
    assert counters["stats"]["unique_graphs"] == 1


@torch.inference_mode()
def test_out_of_memory_is_handed_on(make_model: MakeModel) -> None:
    _, model = _forward(make_model(), "bert")

    def exhausted(pack: Pack) -> Tensor:
        sizes.append(len(pack.input_ids))
        raise torch.OutOfMemoryError

    sizes: list[int] = []
    full = Compiled(exhausted, model, backend="eager")
    for _ in range(OFTEN + 1):
        with pytest.raises(torch.OutOfMemoryError):
            full(_pack(0, 250))
    assert sizes == [250] * (OFTEN - 1) + [256] * 2  # a full pack is not tried again at once


def test_sizes() -> None:
    assert [fixed_size(n) for n in (1, 31, 32, 33, 63, 1000, 1025, 20_990, 32_000, 32_768)] == [
        *(1, 31, 32, 34, 64, 1024, 1088, 21_504, 32_768, 32_768)
    ]
    for n in range(1, 5000):
        assert n <= fixed_size(n) <= max(n, 1 + n * 17 // 16)
        assert fixed_size(fixed_size(n)) == fixed_size(n)
