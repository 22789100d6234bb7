"""Shards on local disk, and a whole read of an input in one call."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.batch import Batch
from pipeline.ledger.pieces import Shard, Todo
from pipeline.sections import Input
from pipeline.source.listing import list_shards
from pipeline.source.planning import Pins, SourcePlan, plan_source
from pipeline.source.reading import ReadRecipe, read_span
from pipeline.source.storage import filesystem, version_of


@pytest.fixture
def shard_of() -> Callable[[Path], Shard]:
    """The shard that a local file is; its key is the file's name."""

    def shard(path: Path) -> Shard:
        fs, name = filesystem(str(path), {})
        info = fs.info(name)
        return Shard(path.name, str(path), version_of(fs, name, info), info["size"])

    return shard


@pytest.fixture(scope="session")
def new_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A path that no file has yet, ending as asked; for tests that run many examples."""
    folder = tmp_path_factory.mktemp("shards")
    return lambda suffix: folder / f"{uuid.uuid4().hex}{suffix}"


@pytest.fixture
def plan() -> Callable[..., SourcePlan]:
    """Plans `Input(**settings)` as for an empty table."""

    def made(**settings: Any) -> SourcePlan:
        source = Input(**settings)
        return plan_source(source, list_shards(source, "/nowhere/out"), Pins(), {})

    return made


@pytest.fixture
def read(plan: Callable[..., SourcePlan]) -> Callable[..., list[Batch]]:
    """Plans and reads `Input(**settings)`: all pieces in shard order."""

    def pieces(**settings: Any) -> list[Batch]:
        source = Input(**settings)
        planned = plan(**settings)
        recipe = ReadRecipe(source.text, source.id, planned.keep, source.max_document, source.format, source.storage_options)
        return [piece for span in planned.spans for piece in read_span(Todo(span), recipe)]

    return pieces
