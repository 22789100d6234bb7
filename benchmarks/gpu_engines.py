"""The ways to encode a piece that benchmarks/gpu.py compares: Tidemill's, and those of other libraries.

Each is made by a function of this file and called with a piece; it gives the mean over the tokens of each document, float32 on
the host. All get token ids but sentence-transformers, which tokenizes by itself, at spaces: that costs little.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks.gpu_data import FRAME, Piece
from operators.aggregation import Floats
from operators.encoders.torch import load
from operators.encoding import Encode, Head
from operators.inputs import Inputs
from operators.models.layout import read_layout
from operators.models.quiet import quiet
from operators.packing import Pack, build_pack
from operators.pooling import pool
from operators.segmentation import Ints

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Engine = Callable[[Piece], Floats]


@contextmanager
def no_fallback() -> Iterator[None]:
    """RuntimeError where torch.compile failed meanwhile: Tidemill would go on without it, and say so in its log."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("operators.models.compiled"), Listener()
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
    if said:
        raise RuntimeError(said[0])


@dataclass(frozen=True)
class Model:
    """A model on disk, and how it is to run."""

    folder: Path
    config: dict[str, Any]
    device: str
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return DTYPES[self.precision]

    def load(self, model_class: Any = AutoModel, **options: Any) -> Any:
        """By transformers, in evaluation mode."""
        with quiet():
            loaded = model_class.from_pretrained(str(self.folder), **{"dtype": self.dtype, **options})
        return loaded.to(self.device).eval()


class Mean(Head):
    """The mean over each window's tokens; a document has one window here."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.type = pa.list_(pa.float32(), width)

    def score(self, hidden_TH: Tensor, pack: Pack, inputs: Inputs) -> Tensor:
        """float32 [S, H]"""
        return pool(hidden_TH, pack, ("mean",), 0)

    def finish(self, scores: Floats, inputs: Inputs) -> pa.Array:
        """The scores are the vectors."""
        return pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), self.width)

    def similarity(self, values: pa.Array, reference: pa.Array) -> Floats:
        """Not asked for here."""
        raise NotImplementedError


def make_encode(model: Model, budget: int, compile: dict[str, Any] | None = None) -> Encode:
    """An encoder pass of Tidemill. `compile`: options for torch.compile, None to run eagerly."""
    encoder = load(read_layout(model.folder), model.device, model.precision)
    if compile is not None:
        encoder.compile(**compile)
    return Encode(encoder, {"vector": Mean(encoder.hidden_size)}, FRAME, budget)


def tidemill(model: Model, budget: int, compile: dict[str, Any] | None = None) -> Engine:
    """Packs, transfer, encoder, pooling: all that a job does between its tokenizer and its writer."""
    encode = make_encode(model, budget, compile)

    return lambda piece: vectors_of(encode, piece)


def vectors_of(encode: Encode, piece: Piece) -> Floats:
    """The documents' vectors. RuntimeError where one failed."""
    encoded = encode(piece.inputs)
    if encoded.failed:
        raise RuntimeError(f"{len(encoded.failed)} documents failed: {next(iter(encoded.failed.values()))}")
    vectors: Floats = encoded.values["vector"].flatten().to_numpy().reshape(piece.documents, -1)
    return vectors


def transformers_padded(model: Model, batch: int, model_class: Any = AutoModel) -> Engine:
    """transformers on padded batches, sorted by length over the whole piece."""
    loaded = model.load(model_class)
    return lambda piece: _padded(loaded, piece, _sorted(piece, piece.documents, batch))


def nemo_style(model: Model, batch: int) -> Engine:
    """As NeMo Curator's classifiers: float32 weights under fp16 autocast, sorted within 1,024 documents, padded."""
    loaded = model.load(dtype=torch.float32)

    def run(piece: Piece) -> Floats:
        with torch.autocast("cuda", torch.float16) if model.device == "cuda" else nullcontext():
            return _padded(loaded, piece, _sorted(piece, 1024, batch))

    return run


def sentence_transformers(model: Model, batch: int) -> Engine:
    """`SentenceTransformer.encode` of the texts, which `make_pieces` has joined beforehand."""
    library = importlib.import_module("sentence_transformers")
    with quiet():
        loaded = library.SentenceTransformer(
            str(model.folder), device=model.device, model_kwargs={"dtype": model.dtype}, local_files_only=True
        )
    return lambda piece: loaded.encode(piece.texts, batch_size=batch, show_progress_bar=False)


def flashdeberta(model: Model, batch: int) -> Engine:
    """FlashDeBERTa's model class on sorted padded batches, as it asks for them."""
    return transformers_padded(model, batch, importlib.import_module("flashdeberta").FlashDebertaV2Model)


def disentangled_flash(model: Model, budget: int) -> Engine:
    """DisentangledFlash's packed encoder on the packs that Tidemill makes."""
    library = importlib.import_module("disentangled_flash")
    loaded = library.optimize_deberta(model.load(), backend="triton")
    encoder, embeddings = loaded.encoder, loaded.embeddings

    class Packed:
        hidden_size, device, padded, concurrent = model.config["hidden_size"], torch.device(model.device), False, False

        @torch.inference_mode()
        def encode(self, pack: Pack) -> Tensor:
            """float [T, H]"""
            ids, ends = (torch.from_numpy(x).to(model.device) for x in (pack.input_ids, pack.cu_seqlens))
            starts = torch.from_numpy(np.repeat(pack.cu_seqlens[:-1], pack.lengths)).to(model.device)
            positions = (torch.arange(len(ids), device=model.device) - starts)[None]
            embedded = embeddings(ids.long()[None], position_ids=positions)[0]
            info = library.PackedSequenceInfo(tuple(pack.cu_seqlens.tolist()), tuple(pack.lengths.tolist()), pack.max_length)
            output = encoder.forward_packed(embedded, ends, pack.max_length, output_hidden_states=False, packed_info=info)
            hidden: Tensor = output.last_hidden_state
            return hidden

    theirs = Encode(Packed(), {"vector": Mean(Packed.hidden_size)}, FRAME, budget)
    return lambda piece: vectors_of(theirs, piece)


def _sorted(piece: Piece, window: int, batch: int) -> Iterator[Ints]:
    """Batches of documents, sorted by length within each `window` of them."""
    lengths = piece.lengths
    for first in range(0, len(lengths), window):
        order = first + np.argsort(-lengths[first : first + window], kind="stable")
        yield from np.array_split(order, np.arange(batch, len(order), batch))


@torch.inference_mode()
def _padded(loaded: Any, piece: Piece, batches: Iterator[Ints]) -> Floats:
    device = loaded.device
    order, results = [], []
    for chosen in batches:
        pack = build_pack(piece.inputs, chosen, FRAME)
        mask = np.arange(pack.max_length) < pack.lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = pack.input_ids
        sent_ids, sent_mask = (_send(torch.from_numpy(x), device) for x in (ids, mask))
        hidden = loaded(input_ids=sent_ids, attention_mask=sent_mask.long()).last_hidden_state.float()
        results.append((hidden * sent_mask[..., None]).sum(1) / sent_mask.sum(1, keepdim=True))
        order.append(chosen)
    vectors: Floats = torch.cat(results).cpu().numpy()
    return vectors[np.argsort(np.concatenate(order))]


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
