"""Masks are filled as transformers' pipeline fills them; in long documents by the window that owns them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from operators.encoders import torch as backend
from operators.encoding import Encode
from operators.heads.fill_mask import Config, Head
from operators.inputs import Inputs, make_inputs
from operators.models.layout import read_layout
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer
from tests.tiny import MODEL_TYPES, WORDS, tiny_encoder, tiny_task

MakeModel = Callable[..., Path]
TEXTS = ["the * of the sea", "* king and *, * queen.", "moon", "", "*", "zebra** \u4eba*", "river *\nbank  *"]
"""A star stands for the model's own mask."""


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Makes a tiny masked language model of a family, once."""
    made: dict[str, Path] = {}

    def make(model_type: str = "bert") -> Path:
        if model_type not in made:
            made[model_type] = tiny_task(tmp_path_factory.mktemp("model"), "MaskedLM", model_type=model_type)
        return made[model_type]

    return make


class Filler:
    """A model put together as a worker does it, with windows of `capacity` body tokens."""

    def __init__(self, path: Path, capacity: int = 60, policy: Any = "window", budget: int = 512, **settings: Any) -> None:
        layout = read_layout(path)
        self.head = Head(Config(**settings), layout)
        self.tokenizer = Tokenizer(layout.transformer_dir)
        assert self.tokenizer.mask_id is not None
        self.mask = self.tokenizer.token(self.tokenizer.mask_id)
        self.windowing = Windowing(capacity, min(4, capacity // 2), policy)
        self.encode = Encode(backend.load(layout, "cpu", "fp32"), {"task": self.head}, self.tokenizer.frame, budget)

    def inputs(self, texts: list[str]) -> Inputs:
        """The documents in windows."""
        return make_inputs(self.tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets=True), self.windowing)

    def fill(self, texts: list[str]) -> Any:
        """The column as Python lists; no document may fail."""
        encoded = self.encode(self.inputs(texts))
        assert not encoded.failed
        assert encoded.values["task"].type == self.head.type
        return encoded.values["task"].to_pylist()


def same(ours: list[dict[str, Any]], theirs: list[list[dict[str, Any]]]) -> None:
    assert len(ours) == len(theirs)
    for mask, expected in zip(ours, theirs, strict=True):
        assert mask["tokens"] == [e["token_str"] for e in expected]
        np.testing.assert_allclose(mask["scores"], [e["score"] for e in expected], rtol=0, atol=1e-5)


def reference(path: Path, texts: list[str], **options: Any) -> list[list[list[dict[str, Any]]]]:
    """What the pipeline gives for texts with masks: a list for each mask."""
    fill: Any = pipeline("fill-mask", model=str(path), device="cpu")
    found = [fill(text, **options) for text in texts]
    return [[masks] if isinstance(masks[0], dict) else masks for masks in found]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_like_the_reference(model_type: str, make_model: MakeModel) -> None:
    path = make_model(model_type)
    filler = Filler(path)
    texts = [text.replace("*", filler.mask) for text in TEXTS]
    ours = filler.fill(texts)
    assert [len(masks) for masks in ours] == [text.count("*") for text in TEXTS]
    for text, masks in zip(texts, ours, strict=True):
        assert [text[m["start"] : m["end"]] for m in masks] == [filler.mask] * len(masks)
        assert [m["start"] for m in masks] == sorted({m["start"] for m in masks})
    asked = [i for i, masks in enumerate(ours) if masks]
    for i, theirs in zip(asked, reference(path, [texts[i] for i in asked]), strict=True):
        same(ours[i], theirs)
    assert len({m["scores"][0] for masks in ours for m in masks}) > 5  # other masks get clearly other scores


def test_the_type_is_the_contract(make_model: MakeModel) -> None:
    mask = pa.struct(
        [("start", pa.int32()), ("end", pa.int32()), ("tokens", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    )
    assert Head(Config(), read_layout(make_model())).type == pa.list_(mask)


def test_top_k_and_targets_like_the_reference(make_model: MakeModel) -> None:
    path = make_model()
    texts = ["the [MASK] of the [MASK]"]
    same(Filler(path, top_k=1).fill(texts)[0], reference(path, texts, top_k=1)[0])
    same(Filler(path, top_k=40).fill(texts)[0], reference(path, texts, top_k=40)[0])
    targets = ["moon", "river", "king", "moon"]
    same(Filler(path, targets=tuple(targets)).fill(texts)[0], reference(path, texts, targets=targets)[0])
    same(Filler(path, top_k=2, targets=tuple(targets)).fill(texts)[0], reference(path, texts, targets=targets, top_k=2)[0])


def owners(n: int, capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Start and length of the window that owns each of n tokens, by the definition."""
    k = 1 if n <= capacity else -(-(n - overlap) // (capacity - overlap))
    total = n + (k - 1) * overlap
    lengths = [total // k + 1] * (total % k) + [total // k] * (k - total % k)
    starts = [sum(lengths[:i]) - i * overlap for i in range(k)]
    owner = [max(i for i in range(k) if not i or starts[i] + (overlap + 1) // 2 <= token) for token in range(n)]
    return [(starts[i], lengths[i]) for i in owner]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_masks_anywhere_in_long_documents_get_their_owners_scores(model_type: str, make_model: MakeModel) -> None:
    path, n, capacity = make_model(model_type), 43, 12
    filler = Filler(path, capacity, budget=40)
    words = np.random.default_rng(0).choice(WORDS, n).tolist()
    documents = [[filler.mask if j == i else word for j, word in enumerate(words)] for i in range(n)]
    documents += [[filler.mask if j % 3 else word for j, word in enumerate(words)], words]
    ours = filler.fill([" ".join(document) for document in documents])
    assert [len(masks) for masks in ours] == [1] * n + [28, 0]

    tokenizer, model = AutoTokenizer.from_pretrained(str(path)), AutoModelForMaskedLM.from_pretrained(str(path)).eval()
    for document, masks in zip(documents, ours, strict=True):
        first, *body, last = tokenizer(" ".join(document)).input_ids
        asked = [token for token, id_ in enumerate(body) if id_ == tokenizer.mask_token_id]
        for token, mask in zip(asked, masks, strict=True):
            start, length = owners(len(body), capacity, 4)[token]
            with torch.inference_mode():
                logits = model(torch.tensor([[first, *body[start : start + length], last]])).logits
            values, ids = logits[0, token - start + 1].softmax(-1).topk(5)
            np.testing.assert_allclose(mask["scores"], values, rtol=0, atol=1e-5)
            assert mask["tokens"] == [tokenizer.decode([i]) for i in ids.tolist()]


def test_results_do_not_depend_on_packs_or_order(make_model: MakeModel) -> None:
    texts = [text.replace("*", "[MASK]") * times for text in TEXTS for times in (1, 9)]
    one, other = Filler(make_model(), 12, budget=16).fill(texts), Filler(make_model(), 12).fill(texts[::-1])[::-1]
    for ours, theirs in zip(one, other, strict=True):
        assert [m["tokens"] for m in ours] == [m["tokens"] for m in theirs]
        assert [m["scores"] for m in ours] == [pytest.approx(m["scores"], abs=1e-5) for m in theirs]
    assert Filler(make_model()).fill([]) == []


def test_only_masks_that_are_read_are_filled(make_model: MakeModel) -> None:
    filler = Filler(make_model(), 12, "truncate")
    text = "moon [MASK] " * 20
    assert len(filler.fill([text, "a [MASK]"])[0]) == 6
    assert filler.inputs([text]).segments.truncated.tolist() == [True]


def test_similarity_is_the_share_of_masks_with_the_same_first_token(make_model: MakeModel) -> None:
    head = Filler(make_model()).head

    def column(*documents: list[list[str]]) -> pa.Array:
        items = [[{"start": 0, "end": 6, "tokens": tokens, "scores": [0.5, 0.1]} for tokens in d] for d in documents]
        return pa.array(items, head.type)

    values = column([["a", "b"], ["c", "d"]], [], [["a", "b"]])
    assert head.similarity(values, values).tolist() == [1, 1, 1]
    assert head.similarity(values, column([["a", "x"], ["d", "c"]], [], [["b", "a"]])).tolist() == [0.5, 1, 0]


def test_what_does_not_fit_the_model_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    layout = read_layout(make_model())
    with pytest.raises(ValueError, match="the tokenizer makes 3 tokens of 'oak'"):
        Head(Config(targets=("moon", "oak")), layout)
    with pytest.raises(ValueError, match="top_k 5000 is more than the model's vocabulary, whose size is"):
        Head(Config(top_k=5000), layout)
    with pytest.raises(ValueError, match="needs a model for MaskedLM"):
        Head(Config(), read_layout(tiny_encoder(tmp_path)))


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    path = tiny_task(tmp_path, "MaskedLM", model_type="modernbert")
    settings = path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"mask_token": "<mask>"', '"mask_token": null'))
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        Head(Config(), read_layout(path))


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"targets": ()}, {"topk": 3}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**settings)
