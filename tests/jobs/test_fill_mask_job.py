"""A whole fill-mask job over Parquet, with masks in several windows of a document."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import pipeline

from pipeline import open_output
from tests.jobs.conftest import text
from tests.tiny import tiny_task

Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


def test_masks_of_a_corpus_are_filled(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    model = tiny_task(tmp_path / "model", "MaskedLM")
    texts = ["the [MASK] of the sea", text(0, 10), "", f"[MASK] {text(1, 60)} [MASK] {text(2, 60)} [MASK]", None]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "in" / "a.parquet")
    task = {"head": "fill_mask", "model": str(model), "top_k": 3}
    process = tidemill("run", job(input={"keep": [], "id": None}, tasks={"filled": task}), "--json")
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads(process.stdout)["books"]["quarantined"] == {"null_text": 1}

    table = open_output(str(tmp_path / "out")).to_table()
    fields = [("start", pa.int32()), ("end", pa.int32()), ("tokens", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    assert table.schema.field("filled").type == pa.list_(pa.struct(fields))
    filled = table["filled"].to_pylist()
    assert [len(masks) for masks in filled] == [1, 0, 0, 3]
    assert table["n_segments"].to_pylist()[3] > 3
    for content, masks in zip(texts, filled, strict=False):
        assert all(str(content)[m["start"] : m["end"]] == "[MASK]" for m in masks)
        assert all(len(m["tokens"]) == len(m["scores"]) == 3 for m in masks)
    fill: Any = pipeline("fill-mask", model=str(model), device="cpu")
    assert filled[0][0]["tokens"] == [found["token_str"] for found in fill(texts[0], top_k=3)]
