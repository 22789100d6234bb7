"""Answers in the documents' own words: tokens widened to whole words, and answers merged within and over windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from operators.inputs import Tokens

Span = tuple[int, int]
"""Start and end (exclusive) in code points."""


def word_spans(tokens: Tokens) -> npt.NDArray[np.int32]:
    """int32 [T, 2]: the span of the word that each token is of; the token's own where the tokenizer knows no word for it.

    Needs tokens with spans and words."""
    assert tokens.spans is not None
    assert tokens.words is not None
    documents = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
    same = (tokens.words[1:] == tokens.words[:-1]) & (tokens.words[1:] >= 0) & (documents[1:] == documents[:-1])
    opens = np.concatenate([[True], ~same])[: len(tokens.words)]
    first = np.flatnonzero(opens)
    last = np.concatenate([first[1:], [len(tokens.words)]]) - 1
    word = np.cumsum(opens) - 1
    return np.stack([tokens.spans[first[word], 0], tokens.spans[last[word], 1]], axis=1)


class Answer(NamedTuple):
    """A part of a document, and how good an answer it is."""

    answer: str
    score: float
    start: int
    end: int
    window: int
    """The window of the document that it was found in."""


def merge_by_text(found: Iterable[Answer]) -> list[Answer]:
    """Answers of equal text, whatever its case, as one with the sum of their scores and the place of the first of them."""
    merged: dict[str, Answer] = {}
    for answer in found:
        key = answer.answer.lower()
        merged[key] = merged[key]._replace(score=merged[key].score + answer.score) if key in merged else answer
    return list(merged.values())


def merge_windows(windows: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Answers of several windows: equal texts of one window as one, then each span once, with its highest score."""
    merged: dict[Span, Answer] = {}
    for window in windows:
        for answer in merge_by_text(window):
            before = merged.setdefault((answer.start, answer.end), answer)
            if answer.score > before.score:
                merged[answer.start, answer.end] = answer
    return list(merged.values())
