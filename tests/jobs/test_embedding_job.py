"""A whole job with late pooling: spans from a column of Parquet and JSONL become lists of vectors, bad ones quarantine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline import open_output
from tests.jobs.conftest import text


def test_spans_become_vectors(tmp_path: Path, tiny_model: Path, job: Callable[..., Path], tidemill: Callable[..., Any]) -> None:
    long = text(3, 90)
    rows = [
        {"text": "the river bank", "parts": [[0, 3], [4, 9]]},
        {"text": long, "parts": [[0, len(long)], [0, 0]]},
        {"text": "no parts", "parts": []},
        {"text": "", "parts": [[0, 0]]},
        {"text": "null parts", "parts": None},
        {"text": "a null among them", "parts": [[0, 1], None]},
        {"text": "beyond the end", "parts": [[0, 15]]},
        {"text": "turned round", "parts": [[3, 1]]},
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": pa.string(), "parts": pa.list_(pa.list_(pa.int64()))}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(columns.items()))), tmp_path / "in" / "b.parquet")
    task = {"head": "embedding", "model": str(tiny_model), "aggregate": "none", "spans": "parts"}
    process = tidemill("run", job(input={"keep": [], "id": None}, tasks={"vector": task}), "--json")
    assert process.returncode == 0, process.stderr[-3000:]

    table = open_output(str(tmp_path / "out")).to_table()
    vector = pa.list_(pa.float32(), 32)
    assert table.schema.field("vector").type == pa.list_(
        pa.struct([("start", pa.int32()), ("end", pa.int32()), ("vector", vector)])
    )
    assert table.schema.names == ["_shard", "_row", "id", "n_tokens", "n_segments", "truncated", "vector"]
    for shard in ("a.jsonl", "b.parquet"):
        values = table.filter(ds.field("_shard") == shard)["vector"].to_pylist()
        found = [[(item["start"], item["end"], item["vector"] is not None) for item in value] for value in values]
        assert found == [
            [(0, 3, True), (4, 9, True)],
            [(0, len(long), True), (0, 0, False)],
            [],
            [(0, 0, False)],
        ]
        lengths = [np.linalg.norm(item["vector"]) for value in values for item in value if item["vector"]]
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)

    status = json.loads(tidemill("status", tmp_path / "out", "--json").stdout)
    assert status["quarantined"] == {"bad_value": 4, "task_failed:vector": 4}
