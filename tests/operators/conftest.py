"""Fixtures: tiny models made once, and an Encode over one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import settings

from operators.encoders import torch as backend
from operators.encoding import Encode, Encoded, Encoder, Lanes
from operators.heads.embedding import Config, Head
from operators.inputs import Tokens, make_inputs
from operators.models.layout import Layout, read_layout
from operators.segmentation import Windowing, resolve_overlap
from operators.tokenization import Tokenizer
from tests.tiny import tiny_sentence_transformer

settings.register_profile("steady", deadline=None)  # machines that run these tests are shared
settings.load_profile("steady")

MakeModel = Callable[..., Path]


def stacked(values: Any) -> npt.NDArray[np.float32]:
    """A fixed-size list array without nulls as [D, dim]."""
    flat: npt.NDArray[np.float32] = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), values.type.list_size)


@dataclass
class Embedder:
    """An embedding model put together as a worker does it."""

    layout: Layout
    tokenizer: Tokenizer
    head: Head
    encode: Encode
    windowing: Windowing

    def tokens(self, texts: list[str]) -> Tokens:
        """The documents' body tokens."""
        return self.tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets=self.head.wants_offsets)

    def run(self, texts: list[str]) -> Encoded:
        """Encode the documents."""
        return self.encode(make_inputs(self.tokens(texts), self.windowing))

    def vectors(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """float32 [D, dim]; no document may fail."""
        encoded = self.run(texts)
        assert not encoded.failed
        return stacked(encoded.values["vector"])


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Makes a tiny sentence-transformers repository with the given options, once for each set of them."""
    made: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tiny_sentence_transformer(tmp_path_factory.mktemp("model"), **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_embedder() -> Callable[..., Embedder]:
    """Makes an Embedder of a model directory; windows are cut as `max_seq_length` says."""

    def make(
        path: Path,
        *,
        budget: int = 2048,
        lanes: int = 1,
        encoder: Callable[[Layout], Encoder] | None = None,
        **settings: Any,
    ) -> Embedder:
        layout = read_layout(path)
        head = Head(Config(**settings), layout)
        tokenizer = Tokenizer(layout.transformer_dir, prompt=head.prompt, lowercase=layout.do_lower_case)
        window = min(n for n in (layout.max_seq_length, layout.max_positions, tokenizer.model_max_length) if n)
        capacity = window - tokenizer.frame.size
        made = encoder(layout) if encoder else backend.load(layout, "cpu", "fp32")
        encode = Encode(made, {"vector": head}, tokenizer.frame, budget, Lanes(lanes))
        return Embedder(layout, tokenizer, head, encode, Windowing(capacity, resolve_overlap("auto", capacity)))

    return make
