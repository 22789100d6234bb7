"""Words are BERT's whatever the tokenizer, and tags are decoded as a loop over them does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import BertPreTokenizer

from operators.entities import ITEM, Spans, find_words, read_tags, runs, word_tags
from operators.tokenization import Tokenizer
from tests.tiny_tokenizers import MODEL_TYPES, WORDS, tiny_tokenizer

GetTokenizer = Callable[[str], Tokenizer]


@pytest.fixture(scope="module")
def get_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> GetTokenizer:
    """The tiny tokenizer of a family."""
    made: dict[str, Tokenizer] = {}

    def get(model_type: str) -> Tokenizer:
        if model_type not in made:
            directory = tmp_path_factory.mktemp("tokenizer")
            tiny_tokenizer(directory, model_type, 64)
            made[model_type] = Tokenizer(directory)
        return made[model_type]

    return get


def words_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[str]]:
    """The words of each text."""
    tokens = tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets=True)
    assert tokens.spans is not None
    return words_of_spans(texts, np.repeat(np.arange(len(texts)), tokens.lengths), tokens.spans)


def words_of_spans(texts: list[str], document: Any, spans: Any) -> list[list[str]]:
    """The words of each text that the given tokens make."""
    tokens = find_words(texts, np.array(document, np.int64), np.array(spans, np.int32).reshape(-1, 2))
    first, last = runs(tokens.opens)
    words: list[list[str]] = [[] for _ in texts]
    for d, start, end in zip(tokens.document[first], tokens.start[first], tokens.end[last], strict=True):
        words[d].append(texts[d][start:end])
    return words


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(
    texts=st.lists(
        st.one_of(
            st.text("abc xyz12\n.,!-$^_(+\u00e9\u043f", max_size=30), st.lists(st.sampled_from([*WORDS, ",", "."])).map(" ".join)
        ),
        max_size=4,
    )
)
def test_words_are_those_of_berts_pre_tokenizer(model_type: str, texts: list[str], get_tokenizer: GetTokenizer) -> None:
    expected = [[word for word, _ in BertPreTokenizer().pre_tokenize_str(text)] for text in texts]
    assert words_of(get_tokenizer(model_type), texts) == expected


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't", ["don", "'", "t"]),
        ("a caf\u00e9s b", ["a", "caf\u00e9s", "b"]),
        ("  lion \u3000\n moon  ", ["lion", "moon"]),
        ("\u4eba\u5929\u5730 \u6c34the\u706b", ["\u4eba", "\u5929", "\u5730", "\u6c34", "the", "\u706b"]),
        ("(\u4eba)42\uff0c\u5929", ["(", "\u4eba", ")", "42", "\uff0c", "\u5929"]),
        ("river-bank's", ["river", "-", "bank", "'", "s"]),
        ("\n\t ", []),
        ("", []),
    ],
)
def test_words_of_real_tokenizers(model_type: str, text: str, words: list[str], get_tokenizer: GetTokenizer) -> None:
    before = get_tokenizer(model_type)
    assert words_of(before, ["bank", text, "x"]) == [["bank"], words, ["x"]]


def _letters(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(text))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("\u0e01\u0e34\u0e19", ["\u0e01\u0e34", "\u0e19"]),  # Thai: a vowel mark belongs to its letter
        ("\u30bf\u30ef\u306b\u884c", ["\u30bf", "\u30ef", "\u306b", "\u884c"]),
        ("\ud55c\uad6d\uc740", ["\ud55c\uad6d\uc740"]),  # Hangul is written with spaces
        ("hi\U0001f600\U0001f600", ["hi", "\U0001f600", "\U0001f600"]),
        ("\U0001f469\u200d\U0001f52c\U0001f44d\U0001f3fd", ["\U0001f469\u200d\U0001f52c", "\U0001f44d\U0001f3fd"]),
        ("\u845b\ufe00\u57ce", ["\u845b\ufe00", "\u57ce"]),
        ("\u0645\u06cc\u200c\u062e", ["\u0645\u06cc\u200c\u062e"]),  # Persian: joined by a character of no width
        ("ab\u200bcd", ["ab", "cd"]),
        ("3\u20ac\u00bd", ["3", "\u20ac", "\u00bd"]),
        ("\u3005\u4eba", ["\u3005", "\u4eba"]),
        ("\U00020000\U00020001", ["\U00020000", "\U00020001"]),
    ],
)
def test_words_of_scripts_where_each_character_is_a_token(text: str, words: list[str]) -> None:
    assert words_of_spans([text], [0] * len(text), _letters(text)) == [words]


def test_tokens_that_say_where_they_are_in_other_ways() -> None:
    text = "to  \u4eba\u5929 moons"
    document = [0] * 6
    # A lone space before a word: at the space, of no width, or laid over the word's first character.
    for lone in ((3, 4), (4, 4)):
        spans = [(0, 2), lone, (4, 5), (5, 6), (6, 11), (11, 12)]
        assert words_of_spans([text], document, spans) == [["to", "\u4eba", "\u5929", "moons"]]
        assert find_words([text], np.zeros(6, np.int64), np.array(spans, np.int32)).index.tolist() == [0, 2, 3, 4, 5]
    assert words_of_spans([text], document, [(0, 2), (4, 5), (4, 5), (5, 6), (6, 11), (11, 12)]) == [
        ["to", "\u4eba", "\u5929", "moons"]
    ]
    # An emoji in four pieces, one token over two words, an unknown word.
    assert words_of_spans(["\U0001f600\U0001f600"], [0] * 5, [(0, 1)] * 4 + [(1, 2)]) == [["\U0001f600", "\U0001f600"]]
    assert words_of_spans(["new york's"], [0] * 2, [(0, 8), (8, 10)]) == [["new york", "'s"]]
    # Documents meet without a space between them, and the first word's beginning was not read.
    assert words_of_spans(["ab", "", "cd"], [0, 0, 2], [(0, 1), (1, 2), (1, 2)]) == [["ab"], [], ["d"]]


_SCHEMES = {
    "BIO": ("O", "B-A", "I-A", "B-B", "I-B"),
    "IO": ("I-A", "O", "I-B"),
    "BIOES": ("O", *(f"{p}-{t}" for t in "AB" for p in "BIES")),
    "BILOU": ("O", *(f"{p}-{t}" for t in "AB" for p in "BILU")),
    "BMES": ("O", *(f"{p}-{t}" for t in "AB" for p in "BMES")),
    "plain": ("A", "O", "B"),
}


def _decoded(labels: tuple[str, ...], documents: list[list[str]]) -> list[tuple[int, int, int, str]]:
    """Document, start, end and type, from the definition: one word after the other."""
    found: list[tuple[int, int, int, str]] = []
    for d, words in enumerate(documents):
        before = ""
        for i, label in enumerate(words):
            prefix, _, kind = label.rpartition("-")
            if label != "O":
                goes_on = before[-1:] == kind and before[0] not in "ELSU" and prefix not in ("B", "S", "U")
                if goes_on:
                    found[-1] = (*found[-1][:2], i + 1, kind)
                else:
                    found.append((d, i, i + 1, kind))
            before = "" if label == "O" else (prefix or "I") + kind
    return found


@pytest.mark.parametrize("scheme", _SCHEMES)
@given(data=st.data())
def test_tags_are_decoded_as_one_by_one(scheme: str, data: st.DataObject) -> None:
    labels = _SCHEMES[scheme]
    documents = data.draw(st.lists(st.lists(st.sampled_from(labels), max_size=12), max_size=5))
    document = np.repeat(np.arange(len(documents)), [len(words) for words in documents]).astype(np.int64)
    position = np.array([i for words in documents for i in range(len(words))], np.int64)
    label = np.array([labels.index(w) for words in documents for w in words], np.int64)
    score = np.linspace(0, 1, len(label), dtype=np.float32)
    tags = read_tags(labels)
    found = tags.decode(Spans(document, position, position + 1, label, score))
    names = [tags.types[t] for t in found.label]
    expected = _decoded(labels, documents)
    assert list(zip(found.document, found.start, found.end, names, strict=True)) == expected
    at = dict(zip(zip(document.tolist(), position.tolist(), strict=True), score.tolist(), strict=True))
    means = [sum(at[d, i] for i in range(start, end)) / (end - start) for d, start, end, _ in expected]
    assert found.score.tolist() == pytest.approx(means, abs=1e-6)


def test_prefixes_are_told_from_names() -> None:
    tags = read_tags(("O", "B-PER", "I-PER", "S-PER", "S-ORG", "E-mail", "B-", "GPE-LOC", "I-O"))
    assert tags.types == ("PER", "ORG", "E-mail", "B-", "GPE-LOC", "O")
    assert tags.type.tolist() == [-1, 0, 0, 0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(tags.begins).tolist() == [1, 3, 4]
    assert np.flatnonzero(tags.ends).tolist() == [3, 4]


@given(
    sizes=st.lists(st.integers(1, 4), max_size=8),
    seed=st.integers(0, 2**32 - 1),
    strategy=st.sampled_from(["first", "max", "average"]),
)
def test_scores_of_words_are_those_of_their_tokens(sizes: list[int], seed: int, strategy: str) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (sum(sizes), 3)).astype(np.float32)  # with many that are equal
    opens = np.zeros(len(scores), bool)
    opens[np.cumsum([0, *sizes[:-1]])[: len(sizes)]] = True
    label, score = word_tags(scores, opens, strategy)
    words = np.split(scores, np.cumsum(sizes))[: len(sizes)]
    expected = [_chosen(rows, strategy) for rows in words]
    assert label.tolist() == [int(row.argmax()) for row in expected]
    assert score.tolist() == pytest.approx([float(row.max()) for row in expected], abs=1e-6)


def _chosen(rows: Any, strategy: str) -> Any:
    if strategy == "average":
        return rows.mean(0)
    return rows[0] if strategy == "first" else max(rows, key=lambda row: float(row.max()))


def test_lists_hold_the_items_of_each_document() -> None:
    ids = np.array([0, 0, 2])
    spans = Spans(ids, np.array([0, 2, 1]), np.array([1, 4, 3]), np.array([1, 0, 1]), np.array([0.5, 1, 0.25], np.float32))
    lists = spans.lists(("A", "B"), ["abcd", "x", "\u4eba\U0001f600\u5929"])
    assert lists.type == pa.list_(ITEM)
    lists.validate(full=True)
    assert lists.to_pylist() == [
        [
            {"start": 0, "end": 1, "label": "B", "score": 0.5, "text": "a"},
            {"start": 2, "end": 4, "label": "A", "score": 1.0, "text": "cd"},
        ],
        [],
        [{"start": 1, "end": 3, "label": "B", "score": 0.25, "text": "\U0001f600\u5929"}],
    ]
