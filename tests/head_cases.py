"""A case for every head, and a worker put together by hand, for the tests that go over all heads and families."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import operators.heads
from operators.encoders import torch as backend
from operators.encoding import Encode, Encoded
from operators.inputs import Companions, Inputs, make_inputs, repeat_companions
from operators.models.layout import read_layout
from operators.schema import TEXT
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer
from tests.tiny import tiny_sentence_transformer, tiny_task

HEADS = sorted(m.name for m in pkgutil.iter_modules(operators.heads.__path__) if not m.name.startswith("_"))

TEXTS = ["moon", "", "river " * 50, "the king of the sea", "rain " * 31, "a light in the dark house , and a dog"]


@dataclass(frozen=True)
class Case:
    """What a head needs to run on TEXTS."""

    task: str | None
    """transformers' `AutoModelFor<task>`; None: the encoder alone."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Of the model."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """One value for each of TEXTS."""
    texts: Sequence[str] = tuple(TEXTS)


_ENTAILMENT = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}, "num_labels": 3}
_TAGS = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])), "num_labels": 5}

CASES: dict[str, Case] = {
    "embedding": Case(None),
    "fill_mask": Case("MaskedLM", texts=tuple(f"{text} {{mask}} and more" for text in TEXTS)),
    "multiple_choice": Case("MultipleChoice", settings={"choices": "choices"}, columns={"choices": [["sea", "the moon"]] * 6}),
    "pair_score": Case(
        "SequenceClassification", {"num_labels": 1}, {"text_pair": "other"}, {"other": ["sea", "a dog", "", "sun", "cat", "x"]}
    ),
    "question_answering": Case("QuestionAnswering", settings={"question": "who is the king"}),
    "sequence_classification": Case("SequenceClassification", {"id2label": {0: "a", 1: "b", 2: "c"}, "num_labels": 3, "seed": 2}),
    "sparse_embedding": Case("MaskedLM", {"initializer_range": 0.2}),
    "token_classification": Case("TokenClassification", _TAGS, {"strategy": "simple"}),
    "zero_shot": Case("SequenceClassification", _ENTAILMENT, {"labels": ["sea", "the moon"]}),
}
"""By the head's module; a new head adds its case here."""


def case_model(directory: Path, head: str, model_type: str = "bert", **config: Any) -> Path:
    """A tiny model that `head` can run on, written to `directory`."""
    case = CASES[head]
    if case.task is None:
        return tiny_sentence_transformer(directory, model_type=model_type, config=config)
    return tiny_task(directory, case.task, model_type=model_type, **{**case.config, **config})


class Worker:
    """A head on its model as a worker has it; `padded` runs the reference encoder."""

    def __init__(self, path: Path, head: str, settings: Mapping[str, Any], *, padded: bool = False) -> None:
        self.layout = read_layout(path)
        module = importlib.import_module(f"operators.heads.{head}")
        self.head = module.Head(module.Config(**settings), self.layout)
        self.tokenizer = Tokenizer(self.layout.transformer_dir, prompt=self.head.prompt, lowercase=self.layout.do_lower_case)
        self.frame = self.tokenizer.pair_frame() if self.head.companion else self.tokenizer.frame
        self.encoder = backend.load(self.layout, "cpu", "fp32", padded=padded)
        self.encode = Encode(self.encoder, {"task": self.head}, self.frame, 100)

    def inputs(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Inputs:
        """Windows of 24 body tokens with an overlap of 6."""
        strings = pa.array(texts, pa.large_string())
        tokens = self.tokenizer.tokenize(strings, offsets=self.head.wants_offsets)
        table = pa.table({name: pa.array(values, self.head.columns.get(name)) for name, values in columns.items()})
        table = table.append_column(TEXT, strings) if table.num_columns else pa.table({TEXT: strings})
        return make_inputs(tokens, Windowing(24, 6, style=self.head.windows), self._companions(texts, columns), table)

    def run(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Encoded:
        """Encode the documents."""
        return self.encode(self.inputs(texts, columns))

    def _companions(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Companions | None:
        companion = self.head.companion
        if companion is None:
            return None
        rows = columns[companion.column] if companion.column else [list(companion.texts)] * len(texts)
        listed = [row if isinstance(row, (list, tuple)) else [row] for row in rows]
        if not listed:
            return repeat_companions([], 0, first=companion.first)
        tokens = self.tokenizer.tokenize(pa.array([text for row in listed for text in row], pa.large_string()))
        document = np.repeat(np.arange(len(listed)), [len(row) for row in listed])
        return Companions(document, tokens.ids, tokens.bounds, companion.first)


def masked(texts: Sequence[str], worker: Worker) -> list[str]:
    """The texts of a case, with the tokenizer's own mask for `{mask}`."""
    mask = worker.tokenizer.token(worker.tokenizer.mask_id) if worker.tokenizer.mask_id is not None else ""
    return [text.replace("{mask}", mask) for text in texts]


def assert_near(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Nested values are the same, floats to `tolerance`."""
    if isinstance(theirs, float):
        assert math.isclose(ours, theirs, rel_tol=0, abs_tol=tolerance), (ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_near(ours[key], theirs[key], tolerance)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one, other, tolerance)
    else:
        assert ours == theirs
