"""What every head must keep, found by its module: a new file is tested on the day it appears."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel

import operators.heads
from operators.encoders import torch as backend
from operators.encoding import Encode
from operators.models.layout import read_layout
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer
from tests.tiny import tiny_sentence_transformer

HEADS = sorted(m.name for m in pkgutil.iter_modules(operators.heads.__path__) if not m.name.startswith("_"))
SETTINGS: dict[str, dict[str, Any]] = {}
"""Settings of heads that cannot do without."""

TEXTS = ["moon", "", "river " * 50, "the king of the sea", "rain " * 31]


@pytest.fixture(scope="module", params=HEADS)
def head_module(request: pytest.FixtureRequest) -> Any:
    """A module of operators.heads."""
    return importlib.import_module(f"operators.heads.{request.param}")


@pytest.fixture(scope="module")
def config(head_module: Any) -> BaseModel:
    """The head's settings, with all defaults that it has."""
    settings: BaseModel = head_module.Config(**SETTINGS.get(head_module.__name__.rpartition(".")[2], {}))
    return settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"))


def test_config_is_frozen_closed_and_plain(config: BaseModel) -> None:
    assert config.model_config.get("frozen")
    assert config.model_config.get("extra") == "forbid"
    assert type(config).model_validate(config.model_dump(mode="json")) == config
    hash(config)


def test_type_and_needs_are_known_without_weights(head_module: Any, config: BaseModel, model: Path, tmp_path: Path) -> None:
    for file in model.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(model)).write_bytes(file.read_bytes())
    head = head_module.Head(config, read_layout(tmp_path))
    assert isinstance(head.type, pa.DataType)
    assert isinstance(head.wants_offsets, bool)
    assert isinstance(head.prompt, str)
    assert head.width > 0


def test_one_value_for_each_document_in_order(head_module: Any, config: BaseModel, model: Path) -> None:
    layout = read_layout(model)
    head = head_module.Head(config, layout)
    tokenizer = Tokenizer(layout.transformer_dir, prompt=head.prompt)
    encode = Encode(backend.load(layout, "cpu", "fp32"), head, tokenizer, Windowing(20, 5), 64)

    def run(texts: list[str]) -> list[Any]:
        encoded = encode(tokenizer.tokenize(pa.array(texts, pa.large_string()), offsets=head.wants_offsets))
        assert encoded.values.type == head.type
        assert not encoded.failed
        values: list[Any] = encoded.values.to_pylist()
        return values

    forwards, backwards = run(TEXTS), run(TEXTS[::-1])
    assert len(forwards) == len(TEXTS)
    for there, back in zip(forwards, reversed(backwards), strict=True):
        assert there == pytest.approx(back, abs=1e-5)
    assert len({repr(value) for value in forwards}) == len(TEXTS)
    assert run([]) == []
