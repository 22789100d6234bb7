"""A pack gives what transformers gives the same texts in a padded batch, and each way of getting it wrong shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AutoModel, AutoTokenizer

from operators.attention.varlen import Windows, attend
from operators.models import packed
from operators.models.families import PACKED, TOP_K
from operators.models.packed import ATTENTION, Packed, position_ids
from operators.packing import Pack
from tests.tiny import WORDS, tiny_encoder

EXACT = 1e-5


K = 5


def pack(windows: list[list[int]], types: list[list[int]] | None = None) -> Pack:
    """These windows end to end."""
    return Pack(
        input_ids=np.concatenate(windows).astype(np.int32),
        cu_seqlens=np.cumsum([0, *map(len, windows)]).astype(np.int32),
        segments=np.arange(len(windows)),
        token_types=None if types is None else np.concatenate(types).astype(np.int32),
    )


def texts() -> list[str]:
    """Many lengths, some equal, an empty one."""
    words = np.random.default_rng(0).choice(WORDS, 700).tolist()
    return [" ".join(words[3 * n : 4 * n]) for n in (58, 58, 40, 9, 9, 9, 1, 0)]


class Pair:
    """One tiny model twice: padded as transformers runs it, and packed."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))
        self.reference: Any = AutoModel.from_pretrained(str(directory)).eval()
        self.model: Any = AutoModel.from_pretrained(str(directory), attn_implementation=ATTENTION).eval()
        self.packed = Packed(self.model)

    def windows(self) -> list[list[int]]:
        """Texts as the family's tokenizer frames them, and bare windows of two tokens and one."""
        framed = self.tokenizer(texts(), add_special_tokens=True).input_ids
        return [*framed, framed[0][:2], framed[0][:1]]

    def expect(self, windows: list[list[int]], types: list[list[int]] | None = None) -> Tensor:
        """float [T, H] by transformers, padded."""
        encoded = {"input_ids": windows} if types is None else {"input_ids": windows, "token_type_ids": types}
        padded = self.tokenizer.pad(encoded, return_tensors="pt", padding_side="right")
        with torch.inference_mode():
            hidden: Tensor = self.reference(**padded).last_hidden_state
        return hidden[padded["attention_mask"].bool()]

    @torch.inference_mode()
    def error(self, windows: list[list[int]], types: list[list[int]] | None = None) -> float:
        """Largest difference between packed and padded."""
        difference = self.packed(pack(windows, types)) - self.expect(windows, types)
        return float(difference.abs().max())


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes the Pair of a family, once."""
    made: dict[str, Pair] = {}

    def make(family: str) -> Pair:
        if family not in made:
            made[family] = Pair(tiny_encoder(tmp_path_factory.mktemp("model"), model_type=family))
        return made[family]

    return make


@pytest.mark.parametrize("family", PACKED)
def test_like_transformers_padded(family: str, make_pair: Callable[[str], Pair]) -> None:
    pair = make_pair(family)
    windows = pair.windows()
    assert {1, 2} < {len(window) for window in windows}
    assert max(map(len, windows)) > 32  # ModernBERT's local attention sees 8 to each side
    assert pair.error(windows) <= EXACT
    assert pair.expect(windows).abs().mean() > 0.3  # so that the tolerance means something


def _top_k_by_sorting(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: object) -> Any:
    """For windows alone: all scores, and those below the K-th of the sorted ones left out."""
    scores = query @ key.transpose(-1, -2) * scaling
    least = scores.sort(dim=-1, descending=True).values[..., : min(K, scores.shape[-1])][..., -1:]
    return (scores.masked_fill(scores < least, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("top_k_by_sorting", _top_k_by_sorting)


@torch.inference_mode()
@pytest.mark.parametrize("family", TOP_K)
def test_top_k_like_windows_alone_with_sorted_scores(family: str, make_pair: Callable[[str], Pair], tmp_path: Path) -> None:
    pair = make_pair(family)
    pair.model.save_pretrained(tmp_path)
    alone: Any = AutoModel.from_pretrained(str(tmp_path), attn_implementation="top_k_by_sorting").eval()
    windows = pair.windows()
    expected = torch.cat([alone(input_ids=torch.tensor([window])).last_hidden_state[0] for window in windows])
    found = Packed(pair.model, K)(pack(windows))
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert (found - pair.expect(windows)).abs().max() > 0.1
    assert torch.equal(Packed(pair.model, 64)(pack(windows)), pair.packed(pack(windows)))


@pytest.mark.parametrize("family", PACKED)
def test_the_order_of_windows_does_not_matter(family: str, make_pair: Callable[[str], Pair]) -> None:
    pair = make_pair(family)
    assert pair.error(pair.windows()[::-1]) <= EXACT
    assert pair.error(pair.windows()[::2] + pair.windows()[1::2]) <= EXACT


@pytest.mark.parametrize("family", ["albert", "bert", "electra"])
def test_token_types_of_pairs(family: str, make_pair: Callable[[str], Pair]) -> None:
    pair = make_pair(family)
    windows = pair.windows()
    types = [[0] * (len(window) // 2) + [1] * (len(window) - len(window) // 2) for window in windows]
    assert pair.error(windows, types) <= EXACT
    assert (pair.expect(windows, types) - pair.expect(windows)).abs().max() > 0.1


def test_modernbert_with_windows_of_many_blocks(tmp_path: Path) -> None:
    pair = Pair(tiny_encoder(tmp_path, model_type="modernbert", max_positions=512))
    ids = np.random.default_rng(1).integers(5, 100, 1000).tolist()
    windows = [ids[:400], ids[400:800], ids[800:929], ids[929:946], ids[946:955], ids[955:963]]
    assert pair.error(windows) <= EXACT


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_a_text_that_spells_the_padding_token(family: str, make_pair: Callable[[str], Pair]) -> None:
    pair = make_pair(family)
    windows = pair.tokenizer(["the <pad> river <pad><pad> bank", "<pad> sun", "moon"]).input_ids
    assert sum(window.count(pair.tokenizer.pad_token_id) for window in windows) == 4
    assert pair.error(windows) <= EXACT


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=6), st.none() | st.integers(0, 3))
def test_positions(windows: list[list[int]], padding: int | None) -> None:
    found = position_ids(pack(windows), padding).tolist()
    expected: list[int] = []
    for window in windows:
        if padding is None:
            expected += range(len(window))
        else:
            real = [i != padding for i in window]
            expected += [padding + sum(real[: at + 1]) if is_real else padding for at, is_real in enumerate(real)]
    assert found == expected


# Each trap is stepped in on purpose: the comparison above has to see it.


def _shared_positions(pack: Pack, padding: int | None = None) -> Any:
    return np.arange(len(pack.input_ids)) % 50 + (0 if padding is None else padding + 1)


@pytest.mark.parametrize("family", [family for family in PACKED if family != "modernbert"])
def test_positions_that_run_through_show(family: str, make_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(family)
    monkeypatch.setattr(packed, "position_ids", _shared_positions)
    assert pair.error(pair.windows()) > 0.1


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_positions_from_0_show(family: str, make_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(family)
    monkeypatch.setattr(packed, "position_ids", lambda pack, padding: position_ids(pack))
    assert pair.error(pair.windows()) > 0.1


@pytest.mark.parametrize("family", PACKED)
def test_windows_that_are_forgotten_raise(family: str, make_pair: Callable[[str], Pair]) -> None:
    pair = make_pair(family)
    batch = pair.tokenizer(["the river", "a"], padding=True, return_tensors="pt")
    with pytest.raises(TypeError, match="windows"):
        pair.model(**batch)


@pytest.mark.parametrize("family", PACKED)
def test_windows_that_see_each_other_show(family: str, make_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(family)
    of = Windows.of

    def one(pack_: Pack, device: torch.device) -> Windows:
        return of(pack([pack_.input_ids.tolist()]), device)

    monkeypatch.setattr(Windows, "of", one)
    assert pair.error(pair.windows()) > 0.1


@pytest.mark.parametrize("wrong", [-1, 1])
def test_local_attention_off_by_one_shows(wrong: int, make_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair("modernbert")

    def off(qkv: Any, windows: Windows, scale: float, reach: int | None) -> Tensor:
        return attend(qkv, windows, scale, None if reach is None else reach + wrong)

    monkeypatch.setattr(packed, "attend", off)
    assert pair.error(pair.windows()) > 0.01
