"""A model whose numbers do not fit fp16 is run in bfloat16 from the first pack that shows it."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, DebertaV2Config

from operators.models.deberta import Deberta
from operators.models.finite import Forward, Guarded
from operators.packing import Pack

RARE = 99
"""The token whose embedding overflows."""


def pack(*ids: int) -> Pack:
    """One window."""
    return Pack(input_ids=np.array(ids, np.int32), cu_seqlens=np.array([0, len(ids)], np.int32), segments=np.arange(1))


PLAIN, OVERFLOWING = pack(5, 6, 7, 8), pack(5, RARE, 7)


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny DeBERTa v3 in float32. The feed-forward network makes more of one token than fp16 holds."""
    config = DebertaV2Config(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        initializer_range=0.25,
    )
    auto: Any = AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = auto.from_config(config).eval()
    with torch.no_grad():
        # Only RARE has a large first component behind the embeddings, and only a large one opens the wide neuron.
        made.embeddings.word_embeddings.weight[:, 0] = 0
        made.embeddings.word_embeddings.weight[RARE] = 0
        made.embeddings.word_embeddings.weight[RARE, 0] = 9
        network = made.encoder.layer[0]
        network.intermediate.dense.weight[0] = 0
        network.intermediate.dense.weight[0, 0] = 1e4
        network.intermediate.dense.bias[0] = -3e4
        network.output.dense.weight[:, 0] *= 1e2
    return made


class Counted:
    """A forward that counts its packs."""

    def __init__(self, forward: Forward) -> None:
        self.packs = 0
        self._forward = forward

    def __call__(self, pack: Pack) -> Tensor:
        self.packs += 1
        return self._forward(pack)


def forward(model: Any, dtype: torch.dtype) -> Counted:
    """Of a copy of the model."""
    return Counted(Deberta(copy.deepcopy(model).to(dtype)))


@torch.inference_mode()
def test_the_model_fits_fp16_but_for_one_token(model: Any) -> None:
    for dtype, finite in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        assert forward(model, dtype)(PLAIN).isfinite().all()
        assert bool(forward(model, dtype)(OVERFLOWING).isfinite().all()) == finite


@torch.inference_mode()
def test_a_pack_that_overflows_is_run_again_and_the_precision_stays(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    half, wide = forward(model, torch.float16), forward(model, torch.bfloat16)
    guarded = Guarded(half, lambda: wide)
    assert guarded(PLAIN).dtype == torch.float16
    assert (half.packs, wide.packs) == (1, 0)
    with caplog.at_level(logging.WARNING):
        rescued = guarded(OVERFLOWING)
    assert (half.packs, wide.packs) == (2, 1)
    assert len(caplog.records) == 1
    exact = forward(model, torch.float32)(OVERFLOWING)
    assert (rescued.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert guarded(PLAIN).dtype == torch.bfloat16
    assert (half.packs, wide.packs) == (2, 2)
    assert len(caplog.records) == 1


@torch.inference_mode()
def test_a_fallback_that_cannot_be_made_is_asked_for_again(model: Any) -> None:
    wide = forward(model, torch.bfloat16)
    answers = iter([torch.OutOfMemoryError("no room"), wide])

    def fallback() -> Forward:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    guarded = Guarded(forward(model, torch.float16), fallback)
    with pytest.raises(torch.OutOfMemoryError):
        guarded(OVERFLOWING)
    assert guarded(OVERFLOWING).isfinite().all()
    assert wide.packs == 1


class Waits(TorchDispatchMode):
    """Counts the numbers that are read back, each of which waits for the device."""

    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_pack_waits_for_the_device_once(model: Any) -> None:
    guarded = Guarded(forward(model, torch.float16), lambda: forward(model, torch.bfloat16))
    guarded(PLAIN)
    counts = []
    for packed in (PLAIN, OVERFLOWING, PLAIN):
        with Waits() as waits:
            guarded(packed)
        counts.append(waits.count)
    assert counts == [1, 1, 0]
