"""Top-k attention equals softmax over the k largest scores of a dense mask; where k spans a window it is full attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from operators.attention import topk, varlen
from operators.attention.topk import attend
from operators.attention.varlen import Projected, Windows
from tests.operators.attention.test_varlen import CPU, LENGTHS, pack, projected

SCALE = 0.4


def reference(qkv: Projected, lengths: list[int], k: int) -> Tensor:
    """By the definition, over all pairs of tokens of the pack, with sorted scores in place of a search for the k-th."""
    q, key, v = (x.transpose(0, 1) for x in qkv)
    window = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = window[:, None] == window
    scores = (q @ key.transpose(-1, -2) * SCALE).masked_fill(~same, -torch.inf)
    least = scores.sort(dim=-1, descending=True).values[..., min(k, scores.shape[-1]) - 1, None]
    return (scores.masked_fill(scores < least, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def attended(qkv: Projected, lengths: list[int], k: int) -> Tensor:
    return attend(qkv, Windows.of(pack(lengths), CPU), SCALE, k)


@pytest.mark.parametrize("k", [1, 2, 16, 17, 18, 129, 299, 300])
def test_like_the_definition(k: int) -> None:
    qkv = projected(LENGTHS)
    torch.testing.assert_close(attended(qkv, LENGTHS, k), reference(qkv, LENGTHS, k), rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 10), st.sampled_from([1, 30, 2**18]))
def test_any_lengths_in_chunks_of_any_size(lengths: list[int], k: int, at_once: int) -> None:
    qkv = projected(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "_SCORES_ON_CPU", at_once)
        torch.testing.assert_close(attended(qkv, lengths, k), reference(qkv, lengths, k), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [300, 301, 1000])
def test_k_that_spans_the_windows_is_full_attention_exactly(k: int) -> None:
    qkv = projected(LENGTHS, dtype=torch.float32)
    assert torch.equal(attended(qkv, LENGTHS, k), varlen.attend(qkv, Windows.of(pack(LENGTHS), CPU), SCALE))


def test_short_windows_beside_long_ones_have_full_attention() -> None:
    qkv = projected(LENGTHS, dtype=torch.float32)
    full = varlen.attend(qkv, Windows.of(pack(LENGTHS), CPU), SCALE)
    found = attended(qkv, LENGTHS, 17)
    short = slice(729, None)  # behind the windows of 300, 300 and 129 tokens
    torch.testing.assert_close(found[short], full[short], rtol=0, atol=1e-6)
    assert (found[:729] - full[:729]).abs().max() > 0.1


@pytest.mark.parametrize("k", [3, 16])
def test_one_key_more_or_less_shows(k: int) -> None:
    qkv = projected(LENGTHS)
    for wrong in (k - 1, k + 1):
        assert (attended(qkv, LENGTHS, wrong) - reference(qkv, LENGTHS, k)).abs().max() > 1e-4  # 1e-12 is asked for above


def test_one_key_alone_is_its_value() -> None:
    q, key, v = projected([40])
    best = (q.transpose(0, 1) @ key.permute(1, 2, 0)).argmax(-1)  # [N, T]
    chosen = v.transpose(0, 1).take_along_dim(best[..., None], 1).transpose(0, 1)
    torch.testing.assert_close(attended((q, key, v), [40], 1), chosen)


def test_keys_that_tie_with_the_kth_are_all_kept() -> None:
    q, key, v = projected([12])
    key[6:] = key[:6]  # each key twice, so that an odd k cuts a pair in two
    torch.testing.assert_close(attended((q, key, v), [12], 5), attended((q, key, v), [12], 6), rtol=0, atol=0)
    equal = torch.zeros_like(key)
    torch.testing.assert_close(attended((q, equal, v), [12], 1), v.mean(0).expand_as(v))


def test_what_is_not_a_number_stays_visible() -> None:
    q, key, v = projected([20, 20])
    key[3] = torch.nan
    found = attended((q, key, v), [20, 20], 4)
    assert found[:20].isnan().all()
    assert found[20:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_are_told_apart(dtype: torch.dtype) -> None:
    qkv = projected(LENGTHS, dtype=dtype)
    exact = reference((qkv[0].double(), qkv[1].double(), qkv[2].double()), LENGTHS, 5)
    found = attended(qkv, LENGTHS, 5)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.03)  # a key chosen wrongly is off by far more


def test_an_accelerators_search_finds_the_same() -> None:
    scores = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    scores[0, 0, :20] = 1.5
    for k in (1, 7, 39):
        assert torch.equal(topk._kth_by_topk(scores, k), topk._kth_by_partition(scores, k))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_cuda(dtype: torch.dtype) -> None:
    qkv = projected(LENGTHS, size=16, dtype=dtype)
    q, k, v = (x.cuda() for x in qkv)
    found = attend((q, k, v), Windows.of(pack(LENGTHS), q.device), SCALE, 16).cpu().double()
    exact = reference((qkv[0].double(), qkv[1].double(), qkv[2].double()), LENGTHS, 16)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.03)
