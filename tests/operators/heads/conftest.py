"""Fixtures: a head put together as a worker does it, and a model whose answers are known by construction."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from operators.encoders import torch as backend
from operators.encoding import Encode, Encoded, Head
from operators.inputs import Companions, make_inputs, repeat_companions
from operators.models.layout import read_layout
from operators.segmentation import Windowing, resolve_overlap
from operators.tokenization import Tokenizer
from tests.tiny_tokenizers import MODEL_TYPES, WORDS, tiny_tokenizer


@dataclass
class Labeller:
    """One head over its model, with windows of `max_tokens`."""

    path: Path
    kind: str
    settings: dict[str, Any]
    max_tokens: int | None = None
    policy: Literal["window", "truncate", "error"] = "window"
    budget: int = 2048
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        module = importlib.import_module(f"operators.heads.{self.kind}")
        layout = read_layout(self.path)
        self.head = module.Head(module.Config(**self.settings), layout)
        self._tokenizer = Tokenizer(layout.transformer_dir)
        frame = self._tokenizer.pair_frame() if self.head.companion else self._tokenizer.frame
        window = self.max_tokens or min(n for n in (layout.max_positions, self._tokenizer.model_max_length) if n)
        self._windowing = Windowing(window - frame.size, resolve_overlap("auto", window - frame.size), self.policy)
        self._encode = Encode(backend.load(layout, "cpu", "fp32"), {"task": self.head}, frame, self.budget)

    def encode(self, texts: Sequence[str], beside: Sequence[Sequence[str]] | None = None) -> Encoded:
        """Encode texts, each with the companions that stand beside it in a column."""
        tokens = self._tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets=self.head.wants_offsets)
        return self._encode(make_inputs(tokens, self._windowing, self._companions(len(texts), beside)))

    def __call__(self, texts: Sequence[str], beside: Sequence[Sequence[str]] | None = None) -> list[Any]:
        """The values of all documents; none may fail, and all are of the head's type."""
        encoded = self.encode(texts, beside)
        assert not encoded.failed
        assert encoded.values["task"].type == self.head.type
        values: list[Any] = encoded.values["task"].to_pylist()
        return values

    def _companions(self, documents: int, beside: Sequence[Sequence[str]] | None) -> Companions | None:
        companion = self.head.companion
        if companion is None:
            return None
        texts = companion.texts if beside is None else [text for row in beside for text in row]
        tokens = self._tokenizer.tokenize(pa.array(texts, pa.large_string()))
        if beside is None:
            return repeat_companions(np.split(tokens.ids, tokens.bounds[1:-1]), documents, first=companion.first)
        document = np.repeat(np.arange(documents), [len(row) for row in beside])
        return Companions(document, tokens.ids, tokens.bounds, companion.first)


MakeLabeller = Callable[..., Labeller]
Make = Callable[..., Path]

POOLINGS: list[tuple[str, dict[str, str]]] = [
    *((family, {}) for family in MODEL_TYPES),
    ("modernbert", {"classifier_pooling": "mean"}),
]
"""Every family, and what else ModernBERT's classifiers may read."""


@pytest.fixture(scope="session")
def make_labeller() -> Callable[..., Labeller]:
    """Makes a Labeller of a model's directory and a head's name; other arguments are the head's settings or of Labeller."""

    def make(path: Path, kind: str, *, max_tokens: int | None = None, policy: Any = "window", **settings: Any) -> Labeller:
        return Labeller(path, kind, settings, max_tokens, policy)

    return make


@pytest.fixture(scope="session")
def make_matcher(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a BERT for `task` that answers whether one of TOPICS stands in both texts of a pair, in whatever window it reads.

    Its weights are set by hand. The one layer attends to all tokens alike, so that the vector of the first token counts each
    topic in the window as a share of its length, and the separators too; a topic that is there as often as the two separators is
    in both texts. It gives `logits` for a match, and their negative for none."""

    def make(task: str, logits: tuple[float, ...]) -> Path:
        directory = tmp_path_factory.mktemp("matcher")
        tokenizer = tiny_tokenizer(directory, "bert", 40)
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "intermediate_size": len(TOPICS),
        }
        names = ["contradiction", "neutral", "entailment"] if len(logits) == 3 else ["LABEL_0"]
        labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        config = transformers.BertConfig(
            **sizes, **labels, vocab_size=len(tokenizer), max_position_embeddings=40, hidden_act="relu"
        )
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
        with torch.no_grad():
            _set_weights(model, tokenizer, logits)
        model.save_pretrained(directory)
        return directory

    return make


TOPICS = ("river", "king", "music", "star", "engine")
_SEPARATOR = len(TOPICS)
_MATCH = _SEPARATOR + 1


def _set_weights(model: Any, tokenizer: Any, logits: tuple[float, ...]) -> None:
    """Feature i is kept as components 2i and 2i + 1 of opposite sign, so that layer norms only scale it."""
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    layer, words = model.bert.encoder.layer[0], model.bert.embeddings.word_embeddings.weight
    for feature, token in enumerate([*TOPICS, "[SEP]"]):
        words[tokenizer.convert_tokens_to_ids(token), 2 * feature : 2 * feature + 2] = torch.tensor([1.0, -1.0])
    for linear in (layer.attention.self.value, layer.attention.output.dense):
        linear.weight.copy_(torch.eye(16))
    for topic in range(len(TOPICS)):
        # One topic word for each separator is a match; one for both is half a separator short of it.
        layer.intermediate.dense.weight[topic, [2 * topic, 2 * _SEPARATOR]] = torch.tensor([1.0, -0.75])
        layer.output.dense.weight[2 * _MATCH : 2 * _MATCH + 2, topic] = torch.tensor([1000.0, -1000.0])
    model.bert.pooler.dense.weight[0, 2 * _MATCH] = 10.0
    model.classifier.weight[:, 0] = 2 * torch.tensor(logits)
    model.classifier.bias.copy_(-torch.tensor(logits))


@pytest.fixture(scope="session")
def long_document() -> Callable[[str], str]:
    """Makes a document of several windows without any of TOPICS, but for this word at its very end."""
    others = [word for word in WORDS if word not in TOPICS]
    return lambda word: " ".join([*(others[i % len(others)] for i in range(150)), word])
