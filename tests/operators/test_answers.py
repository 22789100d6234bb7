"""Words as tokenizers see them in whole texts, and answers that meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from operators import tokenization
from operators.answers import Answer, merge_by_text, merge_windows, word_spans
from operators.inputs import Tokens
from operators.tokenization import Tokenizer
from tests.tiny import MODEL_TYPES, WORDS
from tests.tiny_tokenizers import tiny_tokenizer

TEXT = " ".join(
    [
        *(f"{word}storm" for word in WORDS[:40]),
        "caf\u00e9 na\u00efve x-ray,  don't (stop): 12.5%\n\nline \U0001f600 [SEP] <mask> \u4eba\u5929\u6c34 zebra\u6708",
        "z" * 100,
        *WORDS[40:],
    ]
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("text", [TEXT, TEXT.replace(" ", ""), " moon", "moon"], ids=["spaced", "unspaced", "space", "word"])
def test_words_are_those_of_the_whole_text(model_type: str, text: str, tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path, model_type, 64)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    whole = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    tokens = Tokenizer(tmp_path).tokenize(pa.array(["moon", text, "", text], pa.large_string()), offsets=True)
    found = [tuple(span) for span in word_spans(tokens).tolist()]
    expected = [whole.word_to_chars(word) for word in whole.word_ids]
    assert found[int(tokens.bounds[1]) :] == 2 * expected


def test_words_of_long_texts_that_are_tokenized_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer(tmp_path, "bert", 64)
    texts = pa.array([TEXT * 3], pa.large_string())
    whole = Tokenizer(tmp_path).tokenize(texts, offsets=True)
    monkeypatch.setattr(tokenization, "_PART_CHARACTERS", 50)
    parts = Tokenizer(tmp_path).tokenize(texts, offsets=True)
    assert (word_spans(parts) == word_spans(whole)).all()
    assert (parts.spans == whole.spans).all()


def test_a_token_of_no_word_stands_for_itself() -> None:
    spans = np.array([[0, 2], [2, 4], [5, 6], [0, 3]], np.int32)
    tokens = Tokens(np.arange(4, dtype=np.int32), np.array([0, 3, 4]), spans, np.array([0, 0, -1, -1], np.int32))
    assert word_spans(tokens).tolist() == [[0, 4], [0, 4], [5, 6], [0, 3]]


def answer(text: str, score: float, start: int, window: int = 0) -> Answer:
    return Answer(text, score, start, start + len(text), window)


def test_equal_texts_add_up_at_the_place_of_the_first() -> None:
    found = [answer("Moon", 0.5, 10), answer("sun", 0.25, 2), answer("moon", 0.125, 30, 1), answer("MOON", 0.0625, 3, 2)]
    assert merge_by_text(found) == [answer("Moon", 0.6875, 10), answer("sun", 0.25, 2)]
    assert merge_by_text([]) == []


def test_windows_meet_by_span_with_the_highest_score() -> None:
    first = [answer("moon", 0.5, 10), answer("moon", 0.25, 10), answer("sun", 0.25, 40)]
    second = [answer("sun", 0.5, 40, 1), answer("moon", 0.5, 10, 1), answer("moon", 0.875, 60, 1)]
    assert merge_windows([first, second]) == [answer("moon", 1.375, 10, 1), answer("sun", 0.5, 40, 1)]
    assert merge_windows([first, second[:2]]) == [answer("moon", 0.75, 10), answer("sun", 0.5, 40, 1)]
    assert merge_windows([first, second[2:]]) == [answer("moon", 0.75, 10), answer("sun", 0.25, 40), answer("moon", 0.875, 60, 1)]
    assert merge_windows([[], []]) == []
