"""Entities equal transformers' pipeline where they should, and are whole at windows' edges where the pipeline's are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, pipeline
from transformers.pipelines.token_classification import AggregationStrategy

from operators.encoders import torch as backend
from operators.encoding import Encode
from operators.heads.token_classification import Config, Head
from operators.inputs import make_inputs
from operators.models.layout import read_layout
from operators.schema import TEXT
from operators.segmentation import Windowing, segment
from operators.tokenization import Tokenizer
from tests.tiny import MODEL_TYPES, WORDS, tiny_task

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
JOINING = ("simple", "first", "average", "max")
Items = list[dict[str, Any]]


def _words(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


ANY_TEXTS = [
    "",
    "The river bank, don't 42!",
    "\u4eba\u5929the river e\u0301 caf\u00e9",
    f"a [SEP] b  {_words(9)}\n{_words(3, 1)}.",
]


@dataclass
class Tagger:
    """A model for token classification put together as a worker does it."""

    head: Head
    tokenizer: Tokenizer
    encode: Encode

    def __call__(self, texts: list[str], window: int = 64, overlap: int = 0, policy: Any = "window") -> list[Items]:
        """The items of each document; `window` counts the special tokens."""
        column = pa.array(texts, pa.large_string())
        windowing = Windowing(window - self.tokenizer.frame.size, overlap, policy, style=self.head.windows)
        tokens = self.tokenizer.tokenize(column, offsets=True)
        encoded = self.encode(make_inputs(tokens, windowing, None, pa.table({TEXT: column})))
        assert not encoded.failed
        assert encoded.values["task"].type == self.head.type
        items: list[Items] = encoded.values["task"].to_pylist()
        for text, found in zip(texts, items, strict=True):
            assert all(item["text"] == text[item["start"] : item["end"]] for item in found)
        return items


def make_tagger(path: Path, budget: int = 256, **config: Any) -> Tagger:
    """With the head's settings `config`."""
    layout = read_layout(path)
    head = Head(Config(**config), layout)
    tokenizer = Tokenizer(layout.transformer_dir)
    return Tagger(head, tokenizer, Encode(backend.load(layout, "cpu", "fp32"), {"task": head}, tokenizer.frame, budget))


@cache
def loaded_pipeline(path: Path) -> Any:
    """transformers' own."""
    return pipeline("token-classification", model=str(path), device="cpu")


def reference(path: Path, texts: list[str], strategy: str, window: int = 64, stride: int | None = None) -> list[Items]:
    """The same keys by transformers' pipeline, cut at `window` tokens without `stride`."""
    tag = loaded_pipeline(path)
    tag.tokenizer.model_max_length = window
    options = {} if stride is None else {"stride": stride}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        found = [tag(text, aggregation_strategy=strategy, **options) for text in texts]
    return [
        [{"label": e.get("entity_group", e.get("entity")), **{k: e[k] for k in ("start", "end", "score")}} for e in items]
        for items in found
    ]


def assert_same(ours: list[Items], theirs: list[Items]) -> None:
    """The same items in the same order, scores to 1e-5; some, not none."""
    keys = ("start", "end", "label")
    assert [[[e[k] for k in keys] for e in items] for items in ours] == [[[e[k] for k in keys] for e in i] for i in theirs]
    scores, expected = (np.array([e["score"] for items in side for e in items], np.float64) for side in (ours, theirs))
    assert len(scores) >= 3
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny model once for each set of options."""
    made: dict[str, Path] = {}

    def make(model_type: str = "bert", labels: tuple[str, ...] = LABELS, **options: Any) -> Path:
        key = repr((model_type, labels, sorted(options.items())))
        if key not in made:
            id2label = dict(enumerate(labels))
            made[key] = tiny_task(
                tmp_path_factory.mktemp("model"),
                "TokenClassification",
                model_type=model_type,
                id2label=id2label,
                **options,
            )
        return made[key]

    return make


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_merge_hf_is_the_pipeline(model_type: str, make_model: Callable[..., Path]) -> None:
    path = make_model(model_type)
    texts = [*ANY_TEXTS, _words(70, 2), "\u4eba\u5929 " * 30, "moon" * 20]
    for strategy in JOINING:
        tagger = make_tagger(path, strategy=strategy, merge="hf")
        for stride in (0, 5):
            assert_same(tagger(texts, 20, stride), reference(path, texts, strategy, 20, stride))
        assert_same(tagger(texts, 20, 0, "truncate"), reference(path, texts, strategy, 20))


WORD_PIECES = ("bert", "distilbert", "electra", "mpnet")
PLAIN_TEXTS = ["river bank queen", "kingx seaq warr river lawyer moons", f"{_words(20, 3)} riverss", "rain doctorx snow bridge"]
"""Without white space that is a token, and of words that are the same by both rules."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_short_texts_are_the_pipelines(model_type: str, make_model: Callable[..., Path]) -> None:
    path = make_model(model_type)
    texts = ANY_TEXTS if model_type in WORD_PIECES else PLAIN_TEXTS
    for strategy in ("none", *JOINING):
        theirs = reference(path, texts, strategy)
        for text, items in zip(texts, theirs, strict=True):
            for item in items:  # DeBERTa's and ModernBERT's tokens hold the space before them
                item["start"] += text[item["start"]].isspace()
        assert_same(make_tagger(path, strategy=strategy)(texts), theirs)


@pytest.mark.parametrize("strategy", ["none", *JOINING])
@pytest.mark.parametrize("overlap", [0, 5, 9])
def test_long_documents_are_decoded_once_from_the_owners_scores(
    strategy: str, overlap: int, make_model: Callable[..., Path]
) -> None:
    path = make_model("bert")
    texts = [_words(12, 4), f"don't {_words(90, 5)}", f"{_words(40, 6)}, caf\u00e9 \u4eba\u5929 {_words(40, 7)}"]
    # transformers' own decoding of scores that were put together by hand, window by window.
    tag, theirs = loaded_pipeline(path), []
    for text in texts:
        encoded = tag.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        rows = []
        for start, length, first, owned in _windows(len(encoded.input_ids), 18, overlap):
            window = [2, *encoded.input_ids[start : start + length], 3]
            with torch.inference_mode():
                logits = tag.model(torch.tensor([window])).logits[0, 1:-1]
            rows.append(logits.softmax(-1)[first - start : first - start + owned].numpy())
        scores, specials = np.concatenate(rows), np.zeros(len(encoded.input_ids))
        found = tag.gather_pre_entities(
            text, np.array(encoded.input_ids), scores, encoded.offset_mapping, specials, AggregationStrategy(strategy)
        )
        items = tag.aggregate(found, AggregationStrategy(strategy))
        items = [{**item, "label": item.get("entity_group", item.get("entity"))} for item in items]
        theirs.append([item for item in items if item["label"] != "O"])
    assert_same(make_tagger(path, strategy=strategy)(texts, 20, overlap), theirs)


def _windows(n: int, capacity: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Start, length, first owned token and number of owned tokens of each window."""
    s = segment(np.array([n]), Windowing(capacity, overlap))
    return list(zip(s.start.tolist(), s.length.tolist(), s.first_owned.tolist(), s.owned.tolist(), strict=True))


def by_token(path: Path, model_type: str, labels: tuple[str, ...], tags: dict[str, str]) -> Path:
    """A model without layers, of which the label depends on the token alone: that of `tags`, else the first one."""
    config: dict[str, Any] = {"num_hidden_layers": 0, "id2label": dict(enumerate(labels))}
    tiny_task(path, "TokenClassification", model_type=model_type, hidden_size=256, **config)
    vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
    weights = load_file(path / "model.safetensors")
    for name, tensor in weights.items():
        tensor.fill_(1 if name.endswith("LayerNorm.weight") else 0)
        if name.endswith("word_embeddings.weight"):
            tensor.copy_(torch.eye(*tensor.shape))
    for token, index in vocabulary.items():
        weights["classifier.weight"][labels.index(tags.get(token, labels[0])), index] = 1
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def by_word(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`river` begins a LOC, `bank` goes on with it; `king` and `queen` do the same for PER; all else is O."""
    tags = {"river": "B-LOC", "bank": "I-LOC", "king": "B-PER", "queen": "I-PER"}
    return by_token(tmp_path_factory.mktemp("model"), "bert", LABELS, tags)


def _around(before: int, length: int, after: int) -> tuple[str, dict[str, Any]]:
    """A text with one entity of so many words, and that entity."""
    entity = " ".join(["river", *["bank"] * (length - 1)])
    text = " ".join([*["the"] * before, entity, *["of"] * after])
    start = 4 * before
    return text, {"start": start, "end": start + len(entity), "label": "LOC", "text": entity}


def test_an_entity_is_whole_at_every_position_of_the_edge(by_word: Path) -> None:
    cases = [_around(before, length, 40 - before) for before in range(41) for length in (1, 2, 3, 8, 13, 21)]
    for overlap in (0, 1, 4, 7):
        found = make_tagger(by_word, budget=2048)([text for text, _ in cases], 16, overlap)
        for items, (_, entity) in zip(found, cases, strict=True):
            assert [{k: item[k] for k in entity} for item in items] == [entity]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_windows_change_nothing(data: st.DataObject, by_word: Path) -> None:
    words = st.lists(st.sampled_from(["river", "bank", "king", "queen", "the"]), max_size=40).map(" ".join)
    texts = data.draw(st.lists(words, min_size=1, max_size=4))
    capacity = data.draw(st.integers(1, 20))
    overlap = data.draw(st.integers(0, capacity // 2))
    strategy = data.draw(st.sampled_from(["none", *JOINING]))
    tagger = _CACHE.setdefault(strategy, make_tagger(by_word, strategy=strategy))
    cut, whole = tagger(texts, capacity + 2, overlap), tagger(texts)
    assert [[e | {"score": round(e["score"], 5)} for e in items] for items in cut] == [
        [e | {"score": round(e["score"], 5)} for e in items] for items in whole
    ]


_CACHE: dict[str, Tagger] = {}


def test_an_entity_longer_than_windows_is_one_and_a_fragment_for_the_pipeline(by_word: Path) -> None:
    text, entity = _around(4, 21, 10)
    [[ours]] = make_tagger(by_word)([text], 16, 4)
    assert {k: ours[k] for k in entity} == entity
    [[cut]] = make_tagger(by_word)([text], 16, 4, "truncate")
    assert (cut["start"], len(cut["text"].split())) == (entity["start"], 10)
    theirs = reference(by_word, [text], "first", 16, 4)[0]
    assert max(len(text[e["start"] : e["end"]].split()) for e in theirs) == 14
    [like_theirs] = make_tagger(by_word, merge="hf")([text], 16, 4)
    assert [(e["start"], e["end"]) for e in like_theirs] == [(e["start"], e["end"]) for e in theirs]


def test_han_and_punctuation_behind_a_word_are_words_for_us_and_not_for_the_pipeline(tmp_path: Path) -> None:
    tags = {"\u2581king": "B-PER", "\u4eba": "B-LOC", "\u5929": "I-LOC"}
    path = by_token(tmp_path, "xlm-roberta", LABELS, tags)
    text = "the king, \u6c34\u4eba\u5929\u706b of"
    for strategy in ("simple", "first", "average", "max"):
        assert [e["text"] for e in make_tagger(path, strategy=strategy)([text])[0]] == ["king", "\u4eba\u5929"]
    assert [text[e["start"] : e["end"]] for e in reference(path, [text], "first")[0]] == ["king,"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_items_hold_no_space_at_their_edges(model_type: str, make_model: Callable[..., Path]) -> None:
    texts = [" lion  \n moon \u3000 don't\t\u4eba\u5929  river ", "\n \n", _words(40, 8)]
    for strategy in ("none", *JOINING):
        found = make_tagger(make_model(model_type), strategy=strategy)(texts, 20, 4)
        assert not found[1]
        for items in found:
            assert all(item["text"] and item["text"] == item["text"].strip() for item in items)
            assert sorted(items, key=lambda e: e["start"]) == items


def test_threshold_leaves_out_what_is_less_sure(make_model: Callable[..., Path]) -> None:
    path = make_model("bert")
    texts = [_words(80, 9)]
    everything = make_tagger(path)(texts)[0]
    middle = float(np.median([e["score"] for e in everything]))
    some = make_tagger(path, threshold=middle)(texts)[0]
    assert some == [e for e in everything if e["score"] >= np.float32(middle)]
    assert 0 < len(some) < len(everything)
    assert make_tagger(path, threshold=1)(texts) == [[]]


def test_bioes_ends_entities(tmp_path: Path) -> None:
    tags = {"river": "B-X", "bank": "I-X", "moon": "E-X", "star": "S-X", "king": "S-Y"}
    path = by_token(tmp_path, "bert", ("O", *dict.fromkeys(tags.values())), tags)
    text = "river bank moon bank star star king river moon river"
    found = make_tagger(path)([text])[0]
    assert [e["text"] for e in found] == ["river bank moon", "bank", "star", "star", "king", "river moon", "river"]
    assert [e["label"] for e in found] == ["X", "X", "X", "X", "Y", "X", "X"]


def test_similarity_is_f1_of_the_entities(make_model: Callable[..., Path]) -> None:
    head = make_tagger(make_model("bert")).head
    a, b, c = ({"start": s, "end": s + 2, "label": "LOC", "score": 0.5, "text": "xx"} for s in (0, 2, 4))
    ours = pa.array([[], [a], [a, b], [a | {"score": 0.7}], [a]], head.type)
    theirs = pa.array([[], [], [b, c], [a], [a | {"label": "PER"}]], head.type)
    assert head.similarity(ours, theirs).tolist() == [1, 0, 0.5, 1, 0]


def test_documents_are_decoded_some_at_a_time(by_word: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["king", "", "river bank the " * 9, "the", "queen queen of king"] * 3
    for merge in ("token", "hf"):
        tagger = make_tagger(by_word, merge=merge)
        whole = tagger(texts, 12, 3)
        with monkeypatch.context() as patch:
            patch.setattr("operators.heads.token_classification._PART_TOKENS", 5)
            assert tagger(texts, 12, 3) == whole
    assert tagger([]) == []


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_task(tmp_path, "SequenceClassification"))
    with pytest.raises(ValueError, match="this head needs a model for TokenClassification"):
        Head(Config(), layout)


@pytest.mark.parametrize(
    "wrong",
    [{"strategy": "last"}, {"merge": "hf", "strategy": "none"}, {"threshold": 1.5}, {"threshold": float("nan")}, {"labels": 3}],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**wrong)
