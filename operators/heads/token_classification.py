"""Entities: a label for each token from the window that owns it, decoded once over the whole document.

So nothing is cut at a window's edge and nothing is found twice. `merge: hf` does as transformers' pipeline with `stride`, which
decodes each window alone and keeps the longest of what overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from operators import encoding
from operators.aggregation import Floats
from operators.entities import ITEM, Spans, best, find_words, read_tags, runs, word_tags
from operators.heads._hf_entities import Groups, Pieces, after_space, without_overlaps
from operators.inputs import Ids, Inputs
from operators.models.layout import Layout
from operators.models.task import TaskModel, read_task
from operators.packing import Pack, ranges
from operators.schema import TEXT
from operators.segmentation import Flags, Ints

_PART_TOKENS = 1 << 20
"""Tokens that are decoded at once, where no document has more; they take about 150 bytes each."""


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["none", "simple", "first", "average", "max"] = "first"
    """Whose scores a word gets: of its first token, of their mean, or of the token that is surest; simple: each token is a word;
    none: tokens as they are, without entities."""
    merge: Literal["token", "hf"] = "token"
    """How windows become the document: each token from its owner, or as transformers' pipeline does it."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Leave out what has a lower score."""

    @model_validator(mode="after")
    def _no_tokens_of_windows(self) -> Config:
        if self.merge == "hf" and self.strategy == "none":
            raise ValueError("merge: hf joins entities, and strategy: none makes none; choose another strategy")
        return self


@dataclass(frozen=True)
class _Part:
    """T tokens of D documents."""

    texts: list[str]
    """[D]"""
    document: Ints
    """int64 [T], counted from the part's first."""
    window: Ints
    """int64 [T]"""
    ids: Ids
    """int32 [T]"""
    spans: Ids
    """int32 [T, 2]"""
    scores: Floats
    """float32 [T, labels]"""
    many: Flags
    """bool [D]: the document has several windows."""


class Head(encoding.Head):
    """ValueError where `layout` describes no model for token classification."""

    wants_offsets = True
    wants_text = True

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        self._layout = layout
        self._labels = read_task(layout, "TokenClassification").labels
        self._tags = read_tags(self._labels)
        self._owned_only = config.merge == "token"
        self.type = pa.list_(ITEM)
        self.width = len(self._labels)
        self.windows = "balanced" if self._owned_only else "strided"

    def load(self, device: torch.device) -> None:
        """Load the classifier's weights to `device`, and what transformers asks of the tokenizer."""
        self._model = TaskModel(self._layout, "TokenClassification", device)
        self._pieces = None if self._owned_only else Pieces.read(self._layout.transformer_dir)

    def rows(self, inputs: Inputs) -> Ints:
        """int64 [S]: tokens that each segment owns, which in order are those of the documents; all of its tokens for `hf`."""
        return inputs.segments.owned if self._owned_only else inputs.segments.length

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [R, labels]: probabilities."""
        assert pack.body is not None
        segments = inputs.segments
        lengths = self.rows(inputs)[pack.segments]
        first = (segments.first_owned - segments.start)[pack.segments] if self._owned_only else 0
        at = np.repeat(pack.body + first, lengths) + ranges(lengths)
        if not len(at):
            return torch.empty(0, self.width, device=hidden_TH.device)
        logits: Tensor = self._model(hidden_TH[torch.from_numpy(at).to(hidden_TH.device)][None]).logits[0]
        return logits.float().softmax(dim=-1)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The entities of each document, in the order of the text."""
        decode = self._decoded if self._owned_only else self._like_hf
        lists = []
        for part in self._parts(scores, inputs):
            spans, names = decode(part)
            lists.append(spans.take(spans.score >= np.float32(self._config.threshold)).lists(names, part.texts))
        return pa.concat_arrays(lists)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: F1 of the two sets of entities, a score apart; 1 where both are empty."""
        pairs = zip(*([_keys(items) for items in column.to_pylist()] for column in (values, reference)), strict=True)
        shares = [2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs]
        return np.array(shares, np.float32)

    def _decoded(self, part: _Part) -> tuple[Spans, tuple[str, ...]]:
        """Entities, or with strategy none tokens, and what their labels are called."""
        words = find_words(part.texts, part.document, part.spans)
        if self._config.strategy in ("none", "simple"):
            opens = np.ones(len(words.index), bool)
            label, score = best(part.scores)
            label, score = label[words.index], score[words.index]
        else:
            opens = words.opens
            visible = part.scores if len(words.index) == len(part.scores) else part.scores[words.index]
            label, score = word_tags(visible, opens, self._config.strategy)
        first, last = runs(opens)
        tags = Spans(words.document[first], words.start[first], words.end[last], label, score)
        if self._config.strategy == "none":
            return tags.take(self._tags.type[label] >= 0), self._labels
        return self._tags.decode(tags), self._tags.types

    def _like_hf(self, part: _Part) -> tuple[Spans, tuple[str, ...]]:
        """Entities as transformers finds them, and what their labels are called."""
        assert self._pieces is not None
        opens = np.ones(len(part.scores), bool)
        if self._config.strategy == "simple":
            label, score = best(part.scores)
        else:
            opens[1:] = part.window[1:] != part.window[:-1]
            opens |= ~self._pieces.continues(part.ids, part.spans, after_space(part.texts, part.document, part.spans[:, 0]))
            label, score = word_tags(part.scores, opens, self._config.strategy)
        first, last = runs(opens)
        words = Spans(part.document[first], part.spans[first, 0], part.spans[last, 1], label, score)
        groups = Groups.of(self._labels)
        return without_overlaps(groups.group(words, part.window[first]), part.many), groups.names

    def _parts(self, scores: Floats, inputs: Inputs) -> Iterator[_Part]:
        """All documents, some at a time."""
        segments, tokens = inputs.segments, inputs.tokens
        assert tokens.spans is not None
        rows = self.rows(inputs)
        start = tokens.bounds[segments.document] + (segments.first_owned if self._owned_only else segments.start)
        firsts = np.append(segments.first, len(rows))
        ends = np.append(0, np.cumsum(rows))
        cuts = np.flatnonzero(np.diff(ends[firsts[:-1]] // _PART_TOKENS)) + 1
        for d0, d1 in pairwise([0, *cuts.tolist(), inputs.n_documents]):
            s0, s1 = firsts[d0], firsts[d1]
            lengths = rows[s0:s1]
            at = np.repeat(start[s0:s1], lengths) + ranges(lengths)
            yield _Part(
                inputs.columns[TEXT].slice(d0, d1 - d0).to_pylist(),
                np.repeat(segments.document[s0:s1] - d0, lengths),
                np.repeat(np.arange(s1 - s0), lengths),
                tokens.ids[at],
                tokens.spans[at],
                scores[ends[s0] : ends[s1]],
                segments.n_segments[d0:d1] > 1,
            )


def _keys(items: list[dict[str, object]]) -> set[tuple[object, ...]]:
    return {(item["start"], item["end"], item["label"]) for item in items}
