"""Sparse vectors equal sentence-transformers' SparseEncoder for documents that fit, and the maximum over windows beyond."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

import operators.heads.sparse_embedding as module
from operators.encoders import torch as backend
from operators.encoding import Encode, Encoded
from operators.heads import embedding
from operators.heads.sparse_embedding import Config, Head
from operators.inputs import make_inputs
from operators.models.layout import read_layout
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer
from tests.tiny import MODEL_TYPES, WORDS, tiny_sentence_transformer, tiny_task

Vectors = npt.NDArray[np.float32]
MakeMasked = Callable[..., Path]

SHORT = ["", "the river bank", "The King and queen of the sea.", "\u4eba\u5929 zebra 42", "a [SEP] b", "moon " * 8]


@pytest.fixture(scope="module")
def make_masked(tmp_path_factory: pytest.TempPathFactory) -> MakeMasked:
    """Makes a tiny masked language model of a family, once for each; with `pooling`, a sparse encoder's repository of it."""
    made: dict[str, Path] = {}

    def make(model_type: str = "bert", **pooling: Any) -> Path:
        key = repr((model_type, pooling))
        if key not in made:
            made[key] = tiny_task(tmp_path_factory.mktemp("masked"), "MaskedLM", model_type=model_type)
            if pooling:
                modules = [Transformer(str(made[key]), transformer_task="fill-mask"), SpladePooling(**pooling)]
                made[key] = tmp_path_factory.mktemp("sparse")
                SparseEncoder(modules=modules, prompts={"query": "query: "}, device="cpu").save(str(made[key]))
        return made[key]

    return make


@dataclass
class Sparse:
    """The head over its model, as a worker puts them together."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    windowing: Windowing | None = None
    budget: int = 2048

    def __post_init__(self) -> None:
        layout = read_layout(self.path)
        self.head = Head(Config(**self.settings), layout)
        self.tokenizer = Tokenizer(layout.transformer_dir, prompt=self.head.prompt)
        self.encode = Encode(backend.load(layout, "cpu", "fp32"), {"task": self.head}, self.tokenizer.frame, self.budget)

    def run(self, texts: list[str]) -> Encoded:
        """Encode the documents."""
        windowing = self.windowing or Windowing(60 - self.tokenizer.frame.size, 8)
        return self.encode(make_inputs(self.tokenizer.tokenize(pa.array(texts, pa.large_string())), windowing))

    def dense(self, texts: list[str]) -> Vectors:
        """float32 [D, V]; no document may fail, and indices must ascend."""
        encoded = self.run(texts)
        assert not encoded.failed
        assert encoded.values["task"].type == pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
        vocabulary = json.loads((self.path / "config.json").read_text())["vocab_size"]
        vectors = np.zeros((len(texts), vocabulary), np.float32)
        for vector, value in zip(vectors, encoded.values["task"].to_pylist(), strict=True):
            assert value["indices"] == sorted(set(value["indices"]))
            assert all(weight > 0 for weight in value["values"])
            vector[value["indices"]] = value["values"]
        return vectors


def _reference(path: Path, texts: list[str], **options: Any) -> Vectors:
    encoder = SparseEncoder(str(path), device="cpu", local_files_only=True)
    vectors: Vectors = encoder.encode(texts, convert_to_sparse_tensor=False, **options).numpy()
    return vectors


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_like_the_reference(model_type: str, make_masked: MakeMasked) -> None:
    path = make_masked(model_type)
    theirs = _reference(path, SHORT)
    assert np.abs(theirs[1] - theirs[2]).max() > 0.05
    np.testing.assert_allclose(Sparse(path).dense(SHORT), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_sparse_encoders_like_the_reference(
    strategy: str, activation: str, make_masked: MakeMasked, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_masked(pooling_strategy=strategy, activation_function=activation)
    theirs = _reference(path, SHORT)
    np.testing.assert_allclose(Sparse(path).dense(SHORT), theirs, rtol=0, atol=2e-5 if strategy == "sum" else 1e-5)
    monkeypatch.setattr(module, "_LOGITS", 198 * 4)  # four tokens at a time: windows are pooled piece by piece
    np.testing.assert_allclose(Sparse(path).dense(SHORT), theirs, rtol=0, atol=2e-5 if strategy == "sum" else 1e-5)


def test_prompts_like_the_reference(make_masked: MakeMasked) -> None:
    path = make_masked(pooling_strategy="max")
    theirs = _reference(path, SHORT, prompt_name="query")
    assert np.abs(theirs - _reference(path, SHORT)).max() > 0.05
    np.testing.assert_allclose(Sparse(path, {"prompt_name": "query"}).dense(SHORT), theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(Sparse(path, {"prompt": "query: "}).dense(SHORT), theirs, rtol=0, atol=1e-5)


def test_a_long_document_is_the_maximum_over_its_windows(make_masked: MakeMasked) -> None:
    path = make_masked()
    texts = ["moon", *(" ".join(np.random.default_rng(n).choice(WORDS, n)) for n in (12, 13, 40, 100)), ""]
    whole, parts = [], []
    for text in texts:  # windows are cut at words here, so that the reference can read each as a text
        words, step = text.split(), 8
        count = max(1, -(-(len(words) - 4) // step)) if len(words) > 12 else 1
        total = len(words) + (count - 1) * 4
        lengths = [total // count + (i < total % count) for i in range(count)]
        starts = np.cumsum([0, *lengths[:-1]]) - 4 * np.arange(count)
        parts.append([" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)])
        whole.append(_reference(path, parts[-1]).max(0))
    assert [len(part) for part in parts] == [1, 1, 2, 5, 12, 1]
    sparse = Sparse(path, windowing=Windowing(12, 4), budget=40)
    np.testing.assert_allclose(sparse.dense(texts), np.stack(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 7, 40])
def test_the_largest_weights_are_kept(kept: int, make_masked: MakeMasked) -> None:
    path = make_masked()
    texts = [*SHORT, " ".join(WORDS)]
    sparse = Sparse(path, {"max_active_dims": kept}, Windowing(12, 4))
    assert sparse.head.width == 2 * kept
    ours = sparse.dense(texts)
    np.testing.assert_allclose(ours[: len(SHORT)], _reference(path, SHORT, max_active_dims=kept), rtol=0, atol=1e-5)
    # What windows leave out never was among the largest of the document.
    every = Sparse(path, windowing=Windowing(12, 4)).dense(texts)[-1]
    largest = np.where(every >= np.sort(every)[-kept], every, 0)
    np.testing.assert_allclose(ours[-1], largest, rtol=0, atol=1e-5)


def test_numbers_that_are_not_finite_fail_their_document_alone(make_masked: MakeMasked) -> None:
    sparse = Sparse(make_masked())
    encoder = sparse.encode._encoder
    zebra = int(sparse.tokenizer.tokenize(pa.array(["zebra"], pa.large_string())).ids[0])
    original = encoder.encode

    def broken(pack: Any) -> torch.Tensor:
        hidden = original(pack)
        hidden[torch.from_numpy(pack.input_ids == zebra)] = torch.nan
        return hidden

    encoder.encode = broken  # type: ignore[method-assign]
    encoded = sparse.run(["moon", "the zebra", ""])
    assert list(encoded.failed) == [1]
    assert [value is None for value in encoded.values["task"].to_pylist()] == [False, True, False]


def test_similarity_is_the_cosine(make_masked: MakeMasked) -> None:
    head = Head(Config(), read_layout(make_masked()))
    ours = pa.array([{"indices": [1, 5], "values": [3.0, 4.0]}, {"indices": [], "values": []}, {"indices": [2], "values": [1.0]}])
    theirs = pa.array([{"indices": [5, 7], "values": [2.0, 0.0]}, {"indices": [], "values": []}, {"indices": [], "values": []}])
    ours, theirs = (column.cast(head.type) for column in (ours, theirs))
    np.testing.assert_allclose(head.similarity(ours, theirs), [0.8, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(head.similarity(ours, ours), [1, 1, 1], rtol=1e-6)


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, make_masked: MakeMasked) -> None:
    with pytest.raises(ValueError, match="architectures BertModel; this head needs a model for MaskedLM"):
        Head(Config(), read_layout(tiny_sentence_transformer(tmp_path / "dense")))
    layout = read_layout(make_masked(pooling_strategy="max"))
    with pytest.raises(ValueError, match="the model gives sparse vectors; its head is sparse_embedding"):
        embedding.Head(embedding.Config(), layout)
    with pytest.raises(ValueError, match="prompt_name 'x' is not in the model's files; there are: document, query"):
        Head(Config(prompt_name="x"), layout)


def test_a_pooling_that_is_unknown_is_refused(tmp_path: Path, make_masked: MakeMasked) -> None:
    modules = [Transformer(str(make_masked()), transformer_task="fill-mask"), SpladePooling()]
    SparseEncoder(modules=modules, device="cpu").save(str(tmp_path))
    (tmp_path / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "mean"}')
    with pytest.raises(ValueError, match="pooling_strategy 'mean' with activation_function 'relu' is unknown"):
        Head(Config(), read_layout(tmp_path))


@pytest.mark.parametrize("size", [None, 0, 1 << 24, "198"])
def test_a_vocabulary_that_cannot_be_numbered_is_refused(size: object, tmp_path: Path) -> None:
    path = tiny_task(tmp_path, "MaskedLM")
    config = json.loads((path / "config.json").read_text()) | {"vocab_size": size}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vocab_size is"):
        Head(Config(), read_layout(path))


@pytest.mark.parametrize("settings", [{"max_active_dims": 0}, {"prompt": "a: ", "prompt_name": "b"}, {"dim": 3}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**settings)
