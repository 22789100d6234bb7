"""What every head must keep, found by its module: a new file is tested on the day it appears."""

from __future__ import annotations

import importlib
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import BaseModel

from operators.encoding import Head
from operators.models.layout import read_layout
from tests.head_cases import CASES, HEADS, Worker, assert_near, case_model, masked


def test_every_head_has_a_case() -> None:
    assert sorted(CASES) == HEADS


@pytest.fixture(scope="module", params=HEADS)
def name(request: pytest.FixtureRequest) -> str:
    """A module of operators.heads."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def config(name: str) -> BaseModel:
    """The head's settings, with all defaults that it has."""
    settings: BaseModel = importlib.import_module(f"operators.heads.{name}").Config(**CASES[name].settings)
    return settings


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return case_model(tmp_path_factory.mktemp("model"), name)


def test_config_is_frozen_closed_and_plain(config: BaseModel) -> None:
    assert config.model_config.get("frozen")
    assert config.model_config.get("extra") == "forbid"
    assert type(config).model_validate(config.model_dump(mode="json")) == config
    hash(config)


def test_type_and_needs_are_known_without_weights(name: str, config: BaseModel, model: Path, tmp_path: Path) -> None:
    for file in model.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(model)).write_bytes(file.read_bytes())
    head = importlib.import_module(f"operators.heads.{name}").Head(config, read_layout(tmp_path))
    assert isinstance(head, Head)
    assert isinstance(head.type, pa.DataType)
    assert head.width > 0
    assert not (head.prompt and head.companion)
    if head.companion and head.companion.column:
        assert head.companion.column in head.columns


def test_one_value_for_each_document_in_order(name: str, model: Path) -> None:
    case = CASES[name]
    worker = Worker(model, name, case.settings)
    texts = masked(case.texts, worker)

    def run(order: list[int]) -> pa.Array:
        encoded = worker.run(
            [texts[i] for i in order], {column: [values[i] for i in order] for column, values in case.columns.items()}
        )
        assert not encoded.failed
        values = encoded.values["task"]
        assert values.type == worker.head.type
        assert values.null_count == 0
        values.validate(full=True)
        return values

    every = list(range(len(texts)))
    forwards, backwards = run(every), run(every[::-1])
    assert_near(forwards.to_pylist(), backwards.to_pylist()[::-1])
    assert len({repr(value) for value in forwards.to_pylist()}) > 1
    assert len(run([])) == 0
    similarity = worker.head.similarity(forwards, forwards)
    assert similarity.shape == (len(texts),)
    assert similarity.tolist() == pytest.approx([1.0] * len(texts), abs=1e-5)
    assert worker.head.similarity(forwards, run(every[1:] + every[:1])).min() < 1
