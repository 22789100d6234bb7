"""Every Python process with this folder on PYTHONPATH knows the encoder backend `poison`, and what POISON_STAGE asks for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # other programs of the same environment
    import operators.encoders

    operators.encoders.__path__.append(str(Path(__file__).resolve().parents[1] / "encoders"))

_stages = os.environ.get("POISON_STAGE", "").split(",")

if "prepare" in _stages:
    from operators.encoders import poison
    from operators.tokenization import Tokenizer

    _tokenize = Tokenizer.tokenize

    def _poisoned(self, texts, **options):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        words = {word for text in texts.to_pylist() for word in text.split()}
        for kind, word in poison.WORDS.items():
            if word in words:
                poison.act(kind)
        return _tokenize(self, texts, **options)

    Tokenizer.tokenize = _poisoned

if "read" in _stages:
    from pipeline.source import parquet

    _read = parquet.read_batches

    def _torn(span, recipe):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if "poison" in span.shard.key:
            os.abort()
        return _read(span, recipe)

    parquet.read_batches = _torn
