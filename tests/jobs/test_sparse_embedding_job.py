"""A whole job with a sparse encoder beside the dense vectors of another model: the table holds what the encoder itself gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from pipeline import open_output
from tests.jobs.conftest import text
from tests.tiny import tiny_task


@pytest.fixture
def sparse_encoder(tmp_path: Path) -> Path:
    """A tiny sparse encoder as sentence-transformers writes it."""
    bare = tiny_task(tmp_path / "bare", "MaskedLM", model_type="distilbert")
    modules = [Transformer(str(bare), transformer_task="fill-mask"), SpladePooling()]
    SparseEncoder(modules=modules, device="cpu").save(str(tmp_path / "sparse"))
    return tmp_path / "sparse"


def test_sparse_beside_dense(
    tmp_path: Path, tiny_model: Path, sparse_encoder: Path, job: Callable[..., Path], tidemill: Callable[..., Any]
) -> None:
    texts = ["the river bank", "", text(1, 8), text(2, 120), None]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    tasks = {
        "vector": {"head": "embedding", "model": str(tiny_model)},
        "words": {"head": "sparse_embedding", "model": str(sparse_encoder), "max_active_dims": 150},
    }
    process = tidemill("run", job(input={"keep": [], "id": None}, tasks=tasks), "--json")
    assert process.returncode == 0, process.stderr[-3000:]

    table = open_output(str(tmp_path / "out")).to_table()
    assert table.schema.field("words").type == pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    values = table["words"].to_pylist()
    assert len(values) == 4
    reference = SparseEncoder(str(sparse_encoder), device="cpu", local_files_only=True)
    theirs = reference.encode([t or "" for t in texts[:3]], convert_to_sparse_tensor=False, max_active_dims=150).numpy()
    for value, vector in zip(values, theirs, strict=False):
        assert value["indices"] == np.flatnonzero(vector).tolist()
        np.testing.assert_allclose(value["values"], vector[value["indices"]], rtol=0, atol=1e-5)
    assert len(values[3]["indices"]) == 150
    status = json.loads(tidemill("status", tmp_path / "out", "--json").stdout)
    assert status["quarantined"] == {"null_text": 1}
