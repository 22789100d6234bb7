"""Answers to a question, cut out of each document (extractive question answering).

A document that fits one window beside the question gets the answers of transformers' question-answering pipeline (4.57, the
last release line that has one). In longer ones every window is searched; see `Config.merge` for how their answers meet.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from torch import Tensor

from operators import encoding
from operators.aggregation import Floats
from operators.answers import Answer, merge_by_text, merge_windows, word_spans
from operators.inputs import Companion, Inputs
from operators.models.layout import Layout
from operators.models.task import TaskModel, read_task
from operators.packing import Pack, ranges
from operators.schema import TEXT
from operators.segmentation import Ints

_MASKED = -10000.0
"""The pipeline's logit of tokens that are in no answer."""

_FIELDS = [
    pa.field("answer", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("start", pa.int32()),
    pa.field("end", pa.int32()),
    pa.field("window", pa.int32()),
]


class Config(BaseModel):
    """Settings of the head, beside `head` and `model` in the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Annotated[str, Field(min_length=1)] | None = None
    """The same for all documents."""
    question_column: Annotated[str, Field(min_length=1)] | None = None
    """Or the column that holds each document's own."""
    top_k: Annotated[int, Field(gt=0, le=1000)] = 1
    """Answers for each document; more than 1 makes the column a list."""
    max_answer_length: Annotated[int, Field(gt=0)] = 15
    """In tokens, before it is widened to whole words."""
    unanswerable: StrictBool = False
    """Whether "no answer" competes with the answers."""
    merge: Literal["max", "hf"] = "max"
    """How answers of several windows meet. max: a span found in several counts once, with its highest score; hf: as in
    transformers' pipeline, where the scores of equal texts add up."""

    @model_validator(mode="after")
    def _one_question(self) -> Config:
        if (self.question is None) == (self.question_column is None):
            raise ValueError("give either question or question_column")
        return self


class Head(encoding.Head):
    """ValueError where the model was not made for question answering."""

    wants_offsets = True
    wants_text = True

    def __init__(self, config: Config, layout: Layout) -> None:
        labels = read_task(layout, "QuestionAnswering").labels
        if len(labels) != 2:
            raise ValueError(f"the model has {len(labels)} labels; question answering needs 2, for the start and the end")
        self._config = config
        self._layout = layout
        # As many spans of each window as the pipeline looks at: several may widen to the same words.
        self._spans = 2 * config.top_k + 10
        self.width = 1 + 3 * self._spans
        answer = pa.struct(_FIELDS)
        self.type: pa.DataType = answer if config.top_k == 1 else pa.list_(answer)
        self.companion = Companion(config.question_column, (config.question,) if config.question else (), first=True)
        if config.question_column:
            self.columns = {config.question_column: pa.string()}
        if config.merge == "hf":
            self.windows = "strided"

    def load(self, device: torch.device) -> None:
        """Load the layer that scores starts and ends."""
        self._model = TaskModel(self._layout, "QuestionAnswering", device)

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [S, 1 + 3 K]: of each window the score of "no answer", then the K best spans' scores, first and last tokens,
        counted from the window's first body token. Where a window has fewer spans, the others' scores are -1."""
        assert pack.body is not None
        output = self._model(hidden_TH[None])
        logits_2T = torch.stack([output.start_logits[0], output.end_logits[0]]).float()
        lengths = inputs.segments.length[pack.segments]
        body = np.repeat(pack.body, lengths) + ranges(lengths)
        # The first token may be meant by "no answer"; like the pipeline, let it take its share wherever its id is in a window.
        allowed = pack.input_ids == np.repeat(pack.input_ids[pack.cu_seqlens[:-1]], pack.lengths)
        allowed[body] = True
        logits_2T = logits_2T.masked_fill(~torch.from_numpy(allowed).to(logits_2T.device), _MASKED)
        shares_2T = _softmax(logits_2T, pack.lengths.astype(np.int64))
        nothing = shares_2T[:, torch.from_numpy(pack.cu_seqlens[:-1]).to(logits_2T.device).long()].prod(0)
        shares_2N = shares_2T[:, torch.from_numpy(body).to(logits_2T.device)]
        return torch.cat([nothing[:, None], *best_spans(shares_2N, lengths, self._config.max_answer_length, self._spans)], 1)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """An answer for each document, or a list of them; its fields are null where there is none."""
        ends = np.cumsum(inputs.segments.n_segments).tolist()
        windows = [range(*pair) for pair in zip(inputs.segments.first.tolist(), ends, strict=True)]
        texts = inputs.columns[TEXT]
        words = word_spans(inputs.tokens)
        values = [
            self._value(self._found(text.as_py(), of, scores, inputs, words), scores[of.start : of.stop, 0])
            for text, of in zip(texts, windows, strict=True)
        ]
        if self._config.top_k == 1:
            return pa.array([items[0] if items else {} for items in values], self.type)
        return pa.array(values, self.type)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """float32 [D]: 1 where the answers are the same parts of the document, in the same order."""
        spans = [[_spans(value) for value in column.to_pylist()] for column in (values, reference)]
        return np.array([a == b for a, b in zip(*spans, strict=True)], np.float32)

    def _value(self, found: list[list[Answer]], nothing: Floats) -> list[dict[str, object]]:
        """The answers in a document, best first; "no answer" is one without fields. `nothing`: its score in each window."""
        answers = merge_windows(found) if self._config.merge == "max" else merge_by_text(chain.from_iterable(found))
        best = sorted(answers, key=lambda a: -a.score)[: self._config.top_k]
        items: list[dict[str, object]] = [a._asdict() for a in best]
        if self._config.unanswerable:
            items.insert(sum(a.score >= nothing.min(initial=np.inf) for a in best), {})
        return items[: self._config.top_k]

    def _found(
        self, text: str, windows: range, scores: Floats, inputs: Inputs, words: npt.NDArray[np.int32]
    ) -> list[list[Answer]]:
        """The spans found in each window of a document, widened to words, the best first."""
        segments, spans = inputs.segments, inputs.tokens.spans
        assert spans is not None
        found: list[list[Answer]] = []
        for window, s in enumerate(windows):
            opening = int(inputs.tokens.bounds[segments.document[s]] + segments.start[s])
            closing = opening + int(segments.length[s])
            found.append([])
            for point, *ends in scores[s, 1:].reshape(3, -1).T.tolist():
                if point < 0 or opening == closing:
                    break
                first, last = (opening + int(end) for end in ends)
                start, end = int(words[first, 0]), int(words[last, 1])
                if self._config.merge == "hf":  # which knows no more of a word than its window holds
                    start, end = max(start, int(spans[opening, 0])), min(end, int(spans[closing - 1, 1]))
                found[-1].append(Answer(text[start:end], point, start, end, window))
        return found


def best_spans(shares_2N: Tensor, lengths: Ints, longest: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, first and last tokens, each float32 [S, most], of the best spans of at most `longest` tokens in each of S windows.

    `shares_2N`: the starts' and the ends' share of each body token, windows of `lengths` one after the other. A span's score
    is the product of its start's and its end's; -1 where a window has no more spans."""
    device = shares_2N.device
    longest = min(longest, max(1, int(lengths.max(initial=0))))
    left = torch.from_numpy(np.repeat(lengths, lengths) - ranges(lengths)).to(device)
    steps = torch.arange(longest, device=device)
    ends = torch.arange(len(left), device=device)[:, None] + steps
    scores = shares_2N[0][:, None] * shares_2N[1][ends.clamp(max=max(0, len(left) - 1))]
    scores = scores.masked_fill(steps >= left[:, None], -1).flatten()
    # Best first within each window; equal scores in the order of the text, so that no result depends on chance.
    order = scores.argsort(descending=True, stable=True)
    window = torch.repeat_interleave(torch.from_numpy(lengths).to(device)).repeat_interleave(longest)
    order = order[window[order].argsort(stable=True)]

    counts = lengths * longest
    at = (np.cumsum(counts) - counts)[:, None] + np.arange(most)
    exists = np.arange(most) < counts[:, None]
    chosen = order[torch.from_numpy(at[exists]).to(device)]
    first = chosen // longest - torch.from_numpy(np.repeat(np.cumsum(lengths) - lengths, exists.sum(1))).to(device)
    results = [torch.full(exists.shape, fill, device=device) for fill in (-1.0, 0.0, 0.0)]
    for result, values in zip(results, (scores[chosen], first, first + chosen % longest), strict=True):
        result[torch.from_numpy(exists).to(device)] = values.float()
    return results[0], results[1], results[2]


def _softmax(logits_2T: Tensor, lengths: Ints) -> Tensor:
    """The softmax of each row over each window of `lengths` tokens."""
    counts = torch.from_numpy(lengths).to(logits_2T.device)
    window = torch.repeat_interleave(counts, output_size=logits_2T.shape[1]).expand_as(logits_2T)
    highest = torch.full((2, len(lengths)), -torch.inf, device=logits_2T.device).scatter_reduce_(1, window, logits_2T, "amax")
    powers = (logits_2T - highest.gather(1, window)).exp()
    return powers / torch.zeros_like(highest).scatter_add_(1, window, powers).gather(1, window)


def _spans(value: Any) -> list[tuple[int | None, int | None]]:
    answers = value if isinstance(value, list) else [value]
    return [(answer["start"], answer["end"]) if answer else (None, None) for answer in answers]
