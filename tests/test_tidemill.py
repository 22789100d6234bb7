"""The public Python API is exactly what tidemill.py exports."""

from __future__ import annotations

import ast
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import tidemill
from tests.tiny import tiny_sentence_transformer


def test_exports_are_what_the_module_imports() -> None:
    tree = ast.parse(Path(tidemill.__file__).read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(tidemill.__all__)


def test_a_job_from_python(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "in" / "a.parquet")
    model = tiny_sentence_transformer(tmp_path / "model", max_seq_length=16)
    config = tidemill.from_dict(
        {
            "input": {"path": str(tmp_path / "in")},
            "tasks": {"vector": {"head": "embedding", "model": str(model)}},
            "output": {"path": str(tmp_path / "out")},
            "runtime": {"engine": "local", "device": "cpu"},
        }
    )
    assert tidemill.run(config)["books"]["rows_out"] == 2
    dataset = tidemill.open_output(config.output.path)
    assert isinstance(dataset, ds.Dataset)
    assert dataset.count_rows() == 2
    with pytest.raises(tidemill.ConfigError, match="no version 7"):
        tidemill.open_output(config.output.path, version=7)
