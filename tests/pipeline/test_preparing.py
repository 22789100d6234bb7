"""What threads of a worker share is made once."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.models.layout import Layout
from operators.models.repository import resolve
from pipeline import preparing
from pipeline.config import from_dict
from pipeline.planning import make_plan
from pipeline.preparing import Preparer
from tests.tiny import tiny_sentence_transformer


def test_a_models_files_are_looked_for_once_by_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["moon"]}), tmp_path / "in" / "a.parquet")
    config = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out")},
        "tasks": {"vector": {"head": "embedding", "model": str(tiny_sentence_transformer(tmp_path / "model"))}},
        "runtime": {"engine": "local", "device": "cpu"},
    }
    recipe = make_plan(from_dict(config)).recipe
    preparer, model = Preparer(recipe), recipe.tasks[0].model
    looked: list[Any] = []
    found: list[Layout] = []
    second = Thread(target=lambda: found.append(preparer.layout(model)))

    def meanwhile(*arguments: Any) -> Any:
        looked.append(arguments)
        if len(looked) == 1:
            second.start()
            second.join(0.3)  # it would be done by then
        return resolve(*arguments)

    monkeypatch.setattr(preparing, "resolve", meanwhile)
    found.append(preparer.layout(model))
    second.join()
    assert len(looked) == 1
    assert found[0] is found[1]
