"""Encoders by transformers' own modules on CPU, CUDA or NPU. They pad: each pack becomes one rectangle."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils import logging

from operators.models.layout import Layout
from operators.packing import Pack

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A transformers encoder in evaluation mode."""

    padded = True

    def __init__(self, model: torch.nn.Module, hidden_size: int, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self.hidden_size = hidden_size
        self.device = device

    @torch.inference_mode()
    def encode(self, pack: Pack) -> Tensor:
        """float [T, H] on the device, in the precision of the model."""
        lengths = pack.lengths
        mask = np.arange(pack.max_length) < lengths[:, None]
        # Slots of the real tokens in the rectangle, found here so that the device need not be asked for them.
        slots = np.flatnonzero(mask)
        ids = np.zeros(mask.size, np.int64)  # padding stands behind the text and is masked, so any id will do
        ids[slots] = pack.input_ids
        output = self._model(
            input_ids=torch.from_numpy(ids.reshape(mask.shape)).to(self.device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self.device),
        )
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)[torch.from_numpy(slots).to(self.device)]


def load(layout: Layout, device: str, precision: str) -> Encoder:
    """Load the transformer of `layout` to `device` (cpu, cuda or npu). ValueError where its weights are incomplete."""
    if device == "npu":
        importlib.import_module("torch_npu")  # registers the device with torch
    with _quiet():
        model, found = AutoModel.from_pretrained(
            str(layout.transformer_dir),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=_DTYPES[precision],
            output_loading_info=True,
        )
    # BERT's pooler is not used: sentence-transformers' files often lack it, and it is then made up.
    missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
    if missing or found["mismatched_keys"]:
        wrong = sorted([*missing, *(str(m[0]) for m in found["mismatched_keys"])])
        raise ValueError(
            f"{layout.transformer_dir}: {len(wrong)} weights are missing or of another shape, the first is {wrong[0]}"
        )
    return Encoder(model, layout.hidden_size, torch.device(device))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its report on unused weights; what matters of it is checked."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
