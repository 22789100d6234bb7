"""Encoders of the common sizes with seeded weights, on windows of mixed lengths: transformers' padded forward, and ours.

The vocabulary is cut to 1,000 words, which changes no product but those of the embeddings, and saves memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from benchmarks.corpus import long_tail
from benchmarks.engines import Way, ours
from benchmarks.gpu_data import MODELS
from benchmarks.workers import Run, Variant
from operators.aggregation import Floats
from operators.devices import default_token_budget
from operators.encoders.torch import load
from operators.encoding import Encode, Head, Lanes
from operators.inputs import Ids, Inputs, Tokens, make_inputs
from operators.models.layout import read_layout
from operators.models.quiet import quiet
from operators.packing import Frame, Pack, plan_packs
from operators.segmentation import Ints, Windowing

REFERENCE = "transformers fp32, batches of 32"
_LONGEST = 512
_PADDED_BUDGET = 4096
_VOCABULARY = 1000
"""Few tokens: embeddings are looked up, and large tables only take memory."""

SHAPES = {
    name: (family, settings | {"vocab_size": _VOCABULARY, "max_position_embeddings": _LONGEST})
    for name, (family, settings) in MODELS.items()
}
"""Name -> family and what of its config differs from transformers' defaults."""


def make_model(folder: Path, shape: str, layers: int | None = None) -> Path:
    """Write the model of that shape, with seeded weights and on demand fewer layers, to `folder`."""
    family, settings = SHAPES[shape]
    config = AutoConfig.for_model(family, **{**settings, **({"num_hidden_layers": layers} if layers else {})})
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def make_windows(tokens: int) -> list[Ids]:
    """Windows of 8 to 512 tokens, `tokens` in all, about; most lengths are of a long tail, and what is longer is cut."""
    lengths = [min(length, _LONGEST) for length in long_tail(tokens, median=120, sigma=1.0, longest=_LONGEST)]
    random.Random(0).shuffle(lengths)
    generator = np.random.default_rng(0)
    return [generator.integers(5, _VOCABULARY, length, dtype=np.int32) for length in lengths]


def variants(model: Path) -> list[Variant]:
    """All of them, the reference first."""

    padded = "benchmarks.shapes:transformers_padded"
    return [
        Variant(REFERENCE, padded, {"model": model, "by_length": False}),
        Variant("transformers fp32, sorted, 4096 tokens a batch", padded, {"model": model, "by_length": True}),
        *ours("benchmarks.shapes:tidemill", model, "fp32"),
        *ours("benchmarks.shapes:tidemill", model, "bf16"),
    ]


def transformers_padded(windows: Sequence[Ids], model: Path, by_length: bool) -> Run:
    """transformers' own forward: batches of 32 as they come, or sorted by length under a token budget."""
    with quiet():
        loaded: Any = AutoModel.from_pretrained(str(model)).eval()
    lengths = _lengths(windows)
    batches = plan_packs(lengths, _PADDED_BUDGET, padded=True) if by_length else _in_order(len(windows), 32)

    @torch.inference_mode()
    def run() -> list[Any]:
        values: list[Any] = [None] * len(windows)
        for chosen in batches:
            ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(windows[i]).long() for i in chosen], batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths[chosen])[:, None]
            hidden = loaded(input_ids=ids, attention_mask=mask.long()).last_hidden_state.numpy()
            for place, states in zip(chosen.tolist(), hidden, strict=True):
                values[place] = states[: lengths[place]]
        return values

    return run


class _States(Head):
    """The vector of every token."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.type = pa.large_list(pa.list_(pa.float32(), width))

    def rows(self, inputs: Inputs) -> Ints:
        """int64 [S]: one for each token."""
        return inputs.sizes

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [T, H]"""
        return hidden_TH.float()

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The vectors of each document's tokens; it has one window here."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), self.width)
        return pa.LargeListArray.from_arrays(pa.array(inputs.tokens.bounds), vectors)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """Not asked for here."""
        raise NotImplementedError


def tidemill(windows: Sequence[Ids], model: Path, way: Way) -> Run:
    """Our encoder on packs of the default budget, as a job's worker calls it."""
    encoder = load(read_layout(model), "cpu", way.precision)
    nothing = np.empty(0, np.int32)
    head, budget, lanes = _States(encoder.hidden_size), default_token_budget("cpu"), Lanes(way.lanes)
    encode = Encode(encoder, {"states": head}, Frame(nothing, nothing), budget, lanes)
    bounds = np.concatenate([[0], np.cumsum(_lengths(windows))])
    inputs = make_inputs(Tokens(np.concatenate(windows), bounds), Windowing(_LONGEST, 0))

    def run() -> list[Any]:
        encoded = encode(inputs)
        if encoded.failed:
            raise RuntimeError(f"{len(encoded.failed)} windows failed: {next(iter(encoded.failed.values()))}")
        states = encoded.values["states"].flatten().flatten().to_numpy().reshape(-1, encoder.hidden_size)
        return np.split(states, bounds[1:-1])

    return run


def apart(values: Sequence[Any], reference: Sequence[Any]) -> tuple[float, float]:
    """Mean cosine of token vectors with the reference's, and the largest difference of any component."""
    a, b = (np.concatenate(v).astype(np.float64) for v in (values, reference))
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosine.mean()), float(np.abs(a - b).max())


def _lengths(windows: Sequence[Ids]) -> Ints:
    return np.array([len(window) for window in windows], np.int64)


def _in_order(count: int, size: int) -> list[Ints]:
    return np.array_split(np.arange(count), np.arange(size, count, size))
