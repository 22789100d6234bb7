"""What one pass of an encoder reads of a piece: the documents' tokens, their windows, and second texts that stand beside them.

A second text (a question, a hypothesis, a choice) is a *companion*: it stands whole in every window of its document. A
document with several companions is read once for each; an *entry* is a document with one of its companions, or the document
itself where there are none. Segments are windows of entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.segmentation import Ints, Segments, Windowing, segment

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Companion:
    """Where a head's second texts come from: a column of strings or of lists of strings, or the same texts for every document."""

    column: str | None = None
    texts: tuple[str, ...] = ()
    first: bool = False
    """The companion stands before the body, as a question does."""


@dataclass(frozen=True)
class Tokens:
    """Body tokens of D documents, T in all: document d has `ids[bounds[d]:bounds[d + 1]]`."""

    ids: Ids
    """int32 [T]"""
    bounds: Ints
    """int64 [D + 1]"""
    spans: npt.NDArray[np.int32] | None = None
    """int32 [T, 2]: start and end (exclusive) of each token in code points of the text; None where not asked for."""
    words: Ids | None = None
    """int32 [T]: number of the word, as the tokenizer cuts them, that each token is of, counted in each document; -1 where it
    is of none. With `spans`."""

    @property
    def lengths(self) -> Ints:
        """int64 [D]: tokens of each document."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class Companions:
    """The companions of D documents, one for each of E entries: entry e has `ids[bounds[e]:bounds[e + 1]]`."""

    document: Ints
    """int64 [E]: the document of each entry, in order."""
    ids: Ids
    """int32"""
    bounds: Ints
    """int64 [E + 1]"""
    first: bool = False
    """As `Companion.first`."""

    @property
    def lengths(self) -> Ints:
        """int64 [E]: tokens of each companion."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class Inputs:
    """The documents of a piece, ready for packs."""

    tokens: Tokens
    segments: Segments
    """Windows of the entries; `segments.document` numbers entries."""
    companions: Companions | None = None
    columns: pa.Table = field(default_factory=lambda: pa.table({}))
    """Columns of the input that heads asked for, one row for each document."""

    @property
    def entry_document(self) -> Ints:
        """int64 [E]: the document of each entry."""
        return self.companions.document if self.companions else np.arange(self.n_documents)

    @property
    def n_documents(self) -> int:
        """D"""
        return len(self.tokens.bounds) - 1

    @property
    def body_starts(self) -> Ints:
        """int64 [E]: where the body of each entry starts in `tokens.ids`."""
        return self.tokens.bounds[:-1][self.entry_document]

    @property
    def sizes(self) -> Ints:
        """int64 [S]: tokens of each segment with its companion, without the frame."""
        beside = self.companions.lengths[self.segments.document] if self.companions else 0
        sizes: Ints = self.segments.length + beside
        return sizes

    def window_spans(self) -> dict[str, pa.Array]:
        """`start` and `end` of each segment in code points of its text, int32 [S]; 0 and 0 for a document of no tokens.

        Needs tokens with spans."""
        assert self.tokens.spans is not None
        filled = self.segments.length > 0
        opening = (self.body_starts[self.segments.document] + self.segments.start)[filled]
        found = np.zeros((len(filled), 2), np.int32)
        found[filled, 0] = self.tokens.spans[opening, 0]
        found[filled, 1] = self.tokens.spans[opening + self.segments.length[filled] - 1, 1]
        return {"start": pa.array(found[:, 0]), "end": pa.array(found[:, 1])}


def make_inputs(
    tokens: Tokens, windowing: Windowing, companions: Companions | None = None, columns: pa.Table | None = None
) -> Inputs:
    """Cut the documents into windows. A document has the same windows beside each of its companions: those that the longest
    leaves room for."""
    plain = columns if columns is not None else pa.table({})
    if companions is None:
        return Inputs(tokens, segment(tokens.lengths, windowing), None, plain)
    taken = np.zeros(len(tokens.bounds) - 1, np.int64)
    np.maximum.at(taken, companions.document, companions.lengths)
    return Inputs(tokens, segment(tokens.lengths[companions.document], windowing, taken[companions.document]), companions, plain)


def repeat_companions(texts: Sequence[Ids], documents: int, *, first: bool) -> Companions:
    """The same companions for each of `documents` documents."""
    lengths = np.array([len(t) for t in texts], np.int64)
    ids = np.concatenate([np.empty(0, np.int32), *texts])
    bounds = np.concatenate([[0], np.cumsum(np.tile(lengths, documents))]).astype(np.int64)
    return Companions(np.repeat(np.arange(documents), len(texts)), np.tile(ids, documents), bounds, first)
