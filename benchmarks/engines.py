"""Ways to encode the same windows of text by a sentence-transformers model on a CPU: the reference, transformers, and ours."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from benchmarks.workers import Run, Variant, splits
from operators.devices import default_token_budget
from operators.encoding import Encode, Lanes
from operators.exports import Exports, find
from operators.heads.embedding import Config, Head
from operators.inputs import make_inputs
from operators.models.layout import read_layout
from operators.packing import plan_packs
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer

REFERENCE = "sentence-transformers fp32"
_PADDED_BUDGET = 4096


@dataclass(frozen=True)
class Way:
    """How an encoder of ours runs in one process."""

    precision: str = "fp32"
    lanes: int = 1
    """Packs at once, each on one thread; a single one has all threads of the process."""
    backend: str = "torch"
    exports: Path | None = None


def variants(model: Path, exports: Path) -> list[Variant]:
    """All of them, the reference first. `exports`: where the int8 model of a job is."""

    def others(way: Way, processes: int = 1) -> Variant:
        how = f", {processes} processes" if processes > 1 else ""
        arguments = {"model": model, "way": way}
        return Variant(f"Tidemill {way.backend} {way.precision}{how}", "benchmarks.engines:tidemill", arguments, processes)

    reference = "benchmarks.engines:sentence_transformers"
    int8 = Way("int8", backend="openvino", exports=exports)
    return [
        Variant(REFERENCE, reference, {"model": model, "dtype": "float32"}),
        Variant("sentence-transformers bf16", reference, {"model": model, "dtype": "bfloat16"}),
        Variant("transformers fp32, padded and sorted", "benchmarks.engines:transformers_sorted", {"model": model}),
        *ours("benchmarks.engines:tidemill", model, "fp32"),
        *ours("benchmarks.engines:tidemill", model, "bf16"),
        others(Way(backend="onnx")),
        others(Way(backend="openvino")),
        others(Way("bf16", backend="openvino")),
        others(int8),
        others(int8, 2),
    ]


def ours(make: str, model: Path, precision: str) -> list[Variant]:
    """Backend torch with each of `splits`, as shipped first. `make`: as of Variant."""
    return [
        Variant(f"Tidemill {precision}, {how}", make, {"model": model, "way": Way(precision, lanes)}, processes)
        for how, (processes, lanes) in splits().items()
    ]


def windows(texts: Sequence[str], tokenizer: Tokenizer, capacity: int) -> list[str]:
    """The texts in parts of at most `capacity` tokens, cut between words: every tool makes the same tokens of them."""
    tokens = tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets=True)
    assert tokens.spans is not None
    assert tokens.words is not None
    parts = []
    for number, text in enumerate(texts):
        own = slice(tokens.bounds[number], tokens.bounds[number + 1])
        words, spans = tokens.words[own], tokens.spans[own]
        starts = np.flatnonzero(np.diff(words, prepend=-2))
        first = 0
        while first < len(words):
            fitting = starts[(starts > first) & (starts <= first + capacity)]
            whole = int(fitting[-1]) if len(fitting) else first + capacity  # a word may be longer than a window
            last = len(words) if len(words) - first <= capacity else whole
            parts.append(text[spans[first, 0] : spans[last - 1, 1]])
            first = last
    return parts


def sentence_transformers(texts: Sequence[str], model: Path, dtype: str) -> Run:
    """Its `encode`, with its own batches of 32."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda: list(loaded.encode(list(texts)))


def transformers_sorted(texts: Sequence[str], model: Path) -> Run:
    """The model by transformers, padded, in batches of texts of similar lengths; mean pooling, vectors of length 1."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    loaded: Any = AutoModel.from_pretrained(str(model)).eval()

    @torch.inference_mode()
    def run() -> list[Any]:
        ids = tokenizer(list(texts))["input_ids"]
        vectors: list[Any] = [None] * len(ids)
        for chosen in plan_packs(np.array([len(i) for i in ids]), _PADDED_BUDGET, padded=True):
            batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            hidden = loaded(**batch).last_hidden_state
            pooled = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
            for place, vector in zip(chosen.tolist(), pooled, strict=True):
                vectors[place] = vector
        return vectors

    return run


def tidemill(texts: Sequence[str], model: Path, way: Way) -> Run:
    """Our tokenizer, windows, encoder and embedding head, as a job's worker calls them."""
    layout = read_layout(model)
    tokenizer = Tokenizer(layout.transformer_dir, lowercase=layout.do_lower_case)
    module = importlib.import_module(f"operators.encoders.{way.backend}")
    options = {}
    if way.exports:
        found = find(module.LIBRARY.identify(layout, way.precision), str(way.exports))
        assert found is not None
        options["exports"] = Exports(str(way.exports), {found.folder.name: found.digest})
    encoder = module.load(layout, "cpu", way.precision, **options)
    budget, lanes = default_token_budget("cpu"), Lanes(way.lanes)
    encode = Encode(encoder, {"vector": Head(Config(), layout)}, tokenizer.frame, budget, lanes)
    windowing = Windowing((layout.max_seq_length or 512) - tokenizer.frame.size, 0)
    documents = pa.array(texts, pa.large_string())

    def run() -> list[Any]:
        vectors = encode(make_inputs(tokenizer.tokenize(documents), windowing)).values["vector"]
        return list(np.asarray(vectors.flatten()).reshape(len(texts), -1))

    return run
