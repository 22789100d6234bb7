"""From token scores to entities: words, tags and their decoding, over the tokens of all documents at once.

Words are found by where tokens lie in the text, whatever the tokenizer, with the rule of BERT's pre-tokenizer and the scripts
that put no spaces between words: a word is a run of letters and digits; each mark of punctuation and each symbol is one of its
own; and in Chinese, Japanese, Thai, Lao, Burmese and Khmer every token begins one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.aggregation import Floats
from operators.inputs import Ids
from operators.segmentation import Flags, Ints

ITEM = pa.struct(
    [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("score", pa.float32()), ("text", pa.string())]
)

Classes = npt.NDArray[np.uint8]
_SPACE, _ALONE, _LETTER, _MARK, _JOINER = range(5)
"""White space; what is a word of its own; letters and digits; what belongs to the character before; and to both sides."""

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # the iteration mark, zero
    (0x3040, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # half-width kana
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)
"""First and last code points of the scripts that put no spaces between words."""

_TAG = re.compile(r"([BIELSUM])-(.+)", re.DOTALL)


@dataclass(frozen=True)
class Spans:
    """N parts of texts with their labels: tokens, words or entities."""

    document: Ints
    """int64 [N], in order."""
    start: Ints | Ids
    """Integers [N]: in code points of the document."""
    end: Ints | Ids
    """Integers [N]: exclusive."""
    label: Ints
    """int64 [N]: number of the label, or of the type."""
    score: Floats
    """float32 [N]"""

    def take(self, chosen: Ints | Flags) -> Spans:
        """Those that `chosen` numbers or flags."""
        return Spans(self.document[chosen], self.start[chosen], self.end[chosen], self.label[chosen], self.score[chosen])

    def joined(self, opens: Flags) -> Spans:
        """Runs of them as one each, with the mean of their scores; `opens` (bool [N]) flags the first of each run."""
        first, last = runs(opens)
        sums = np.add.reduceat(self.score, first, dtype=np.float64) if len(first) else np.empty(0)
        score = (sums / (last - first + 1)).astype(np.float32)
        return Spans(self.document[first], self.start[first], self.end[last], self.label[first], score)

    def lists(self, names: tuple[str, ...], texts: list[str]) -> pa.Array:
        """list<ITEM> [D]: those of each document, `names` being the labels and `texts` the documents."""
        where = zip(self.document.tolist(), self.start.tolist(), self.end.tolist(), strict=True)
        columns = [
            pa.array(self.start, pa.int32()),
            pa.array(self.end, pa.int32()),
            pa.array(names, pa.string()).take(pa.array(self.label)),
            pa.array(self.score, pa.float32()),
            pa.array([texts[document][start:end] for document, start, end in where], pa.string()),
        ]
        offsets = np.append(0, np.cumsum(np.bincount(self.document, minlength=len(texts))))
        items = pa.StructArray.from_arrays(columns, fields=list(ITEM))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


@dataclass(frozen=True)
class Tags:
    """What the labels of a tag scheme say, one value for each label."""

    types: tuple[str, ...]
    """Names of the entities' types."""
    type: Ints
    """int64: number of the type; -1 for O."""
    begins: Flags
    """The tag is the first of an entity."""
    ends: Flags
    """The tag is the last of one."""

    def decode(self, tags: Spans) -> Spans:
        """The entities of tagged words, or tokens, of which `label` is the tag, and then the type.

        A tag opens an entity where it begins one, and where the one before is of another document or type, is O, or ended its
        own: an I- after O opens one, as in transformers and seqeval."""
        kind = self.type[tags.label]
        opens = self.begins[tags.label]
        opens[:1] = True
        changed = (kind[1:] != kind[:-1]) | (tags.document[1:] != tags.document[:-1])
        opens[1:] |= changed | self.ends[tags.label[:-1]]
        inside = kind >= 0
        typed = Spans(tags.document, tags.start, tags.end, kind, tags.score)
        return typed.take(inside).joined(opens[inside])


def read_tags(labels: tuple[str, ...]) -> Tags:
    """The scheme of `labels`: IO, BIO, BIOES, BILOU, BMES, or names of types alone.

    B- and I- are always prefixes; E-, L-, S-, U- and M- only where one stands before a type that is also found behind B- or
    I-, so that E-mail is a name."""
    split = {label: match for label in labels if (match := _TAG.fullmatch(label))}
    known = {match[2] for match in split.values() if match[1] in "BI"}
    prefixes = {match[1] for match in split.values() if match[2] in known}
    tags = {label: (match[1], match[2]) for label, match in split.items() if match[1] in prefixes}
    parsed = [tags.get(label, ("I", label)) for label in labels]
    outside = np.array([label == "O" for label in labels])
    types = tuple(dict.fromkeys(name for (_, name), out in zip(parsed, outside.tolist(), strict=True) if not out))
    number = {name: i for i, name in enumerate(types)}
    return Tags(
        types,
        np.where(outside, -1, np.array([number.get(name, -1) for _, name in parsed], np.int64)),
        np.array([prefix in "BSU" for prefix, _ in parsed]),
        np.array([prefix in "ELSU" for prefix, _ in parsed]),
    )


@dataclass(frozen=True)
class VisibleTokens:
    """The visible tokens of documents, without the white space at their edges."""

    index: Ints
    """int64 [N]: which of the given tokens these are."""
    document: Ints
    """int64 [N]"""
    start: Ints
    """int64 [N]: in code points of the document."""
    end: Ints
    """int64 [N]: exclusive."""
    opens: Flags
    """bool [N]: the token is the first of a word."""


def find_words(texts: list[str], document: Ints, spans: Ids) -> VisibleTokens:
    """The words of `texts` (D) that tokens (`document` int64 [T] in order, `spans` int32 [T, 2]) make.

    A token opens a word if it is the document's first, or if a word ends before its first visible character; not if it
    overlaps with the token before, as pieces of one character do. Tokens of white space alone belong to no word."""
    classes = _classes("".join(texts))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    base = (np.cumsum(lengths) - lengths)[document]
    start, end = _trimmed(classes, base + spans[:, 0], base + spans[:, 1])
    visible = np.flatnonzero(start < end)
    document, base, start, end = document[visible], base[visible], start[visible], end[visible]
    opens = _breaks()[classes[start - 1], classes[start]]  # the first token's is overwritten
    opens[1:] &= start[1:] >= end[:-1]
    opens[1:] |= document[1:] != document[:-1]
    opens[:1] = True
    return VisibleTokens(visible, document, start - base, end - base, opens)


def word_tags(scores: Floats, opens: Flags, strategy: str) -> tuple[Ints, Floats]:
    """Label and score of each word by `strategy`: first, max or average, as transformers' pipeline means them.

    `scores`: float32 [N, L], tokens of words; `opens`: bool [N], the first of each. int64 [W] and float32 [W]."""
    first, last = runs(opens)
    if strategy == "average" and len(first):
        sums: Floats = np.add.reduceat(scores, first, axis=0)
        return best(sums / (last - first + 1).astype(np.float32)[:, None])
    label, score = best(scores)
    if strategy == "max":
        first = np.lexsort((-score, np.cumsum(opens)))[first]  # each word's tokens, the best first
    return label[first], score[first]


def runs(opens: Flags) -> tuple[Ints, Ints]:
    """Index of the first and of the last of each run; `opens` (bool [N]) flags the first ones, and index 0 if there is one."""
    first = np.flatnonzero(opens)
    return first, np.append(first, len(opens))[1:] - 1


def best(scores: Floats) -> tuple[Ints, Floats]:
    """The label with the highest score, and that score, of each row of float32 [N, L]."""
    label: Ints = scores.argmax(axis=1)
    return label, scores.max(axis=1)


def _trimmed(classes: Classes, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Spans without the white space at their edges; empty where there is nothing else."""
    edges = np.flatnonzero(np.diff(classes == _SPACE, prepend=False, append=False))
    begins, stops = edges[::2], edges[1::2]  # of each run of white space
    filled = np.flatnonzero(start < end)
    start, end = start.copy(), end.copy()
    leading = filled[classes[start[filled]] == _SPACE]
    start[leading] = np.minimum(stops[np.searchsorted(begins, start[leading], side="right") - 1], end[leading])
    trailing = filled[classes[end[filled] - 1] == _SPACE]
    end[trailing] = np.maximum(begins[np.searchsorted(begins, end[trailing] - 1, side="right") - 1], start[trailing])
    return start, end


def _classes(text: str) -> Classes:
    """uint8 [characters]: the class of each."""
    classes: Classes = _table()[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
    return classes


@cache
def _table() -> Classes:
    """The class of every code point."""
    table = np.array([_class(chr(code)) for code in range(0x110000)], np.uint8)
    for first, last in _UNSPACED:
        script = table[first : last + 1]
        script[script == _LETTER] = _ALONE
    table[0x1F3FB:0x1F400] = _MARK  # skin tones
    table[0x200B] = _SPACE  # a space of no width
    table[0x200D] = _JOINER
    return table


def _class(character: str) -> int:
    if character.isspace():
        return _SPACE
    category = unicodedata.category(character)
    if category[0] in "LN":
        return _LETTER
    return _MARK if category[0] == "M" or category == "Cf" else _ALONE


@cache
def _breaks() -> Flags:
    """bool [left, right]: a word ends between characters of these classes."""
    breaks = np.ones((5, 5), bool)
    breaks[[_LETTER, _MARK], _LETTER] = False
    breaks[1:, [_MARK, _JOINER]] = False
    breaks[_JOINER] = False
    return breaks
