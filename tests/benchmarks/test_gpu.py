"""Every part of benchmarks/gpu.py runs with tiny shapes on a CPU; the other libraries' rows say why they were left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks import gpu, gpu_checks


def _run(part: str, out: Path, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and rows of a part."""
    assert gpu.main([part, "--tiny", "--out", str(out), *arguments]) == 0
    (written,) = out.glob("*.json")
    assert (written.parent / f"{written.stem}.md").read_text().startswith(f"# {written.stem}\n")
    read = json.loads(written.read_text())
    return read["facts"], read["rows"]


def test_environment(tmp_path: Path) -> None:
    facts, rows = _run("environment", tmp_path)
    assert facts["device"] == "CPU"
    assert {"commit", "date"} <= set(facts)
    assert all(row["figure"] > 0 for row in rows)


def test_correctness(tmp_path: Path) -> None:
    _, rows = _run("correctness", tmp_path)
    ours = [row for row in rows if "Tidemill" in row["way"]]
    assert len(ours) == 6
    assert all(row["largest error"] < 1e-5 for row in ours)


def test_deberta_attention(tmp_path: Path) -> None:
    _, rows = _run("deberta-attention", tmp_path)
    assert [row["way"] for row in rows[:3]] == ["strided", "as a job runs it", "plain"]
    assert all(row["apart"] is None or row["apart"] < 1e-5 for row in rows)


@pytest.mark.parametrize(("model", "dataset"), [("deberta-v3-base", "A"), ("modernbert-base", "D")])
def test_end_to_end(model: str, dataset: str, tmp_path: Path) -> None:
    facts, rows = _run("end-to-end", tmp_path, "--seconds", "0", "--rounds", "1", "--model", model, "--dataset", dataset)
    assert int(facts["documents"]) > 40
    ran = [row for row in rows if "skipped" not in row]
    assert sum("Tidemill" in row["engine"] for row in ran) == 6
    assert {row["engine"].split(",")[0] for row in ran} >= {"transformers", "sentence-transformers", "NeMo-style"}
    assert all(row["least cosine"] > 0.9999 and row["tokens/s"] > 0 for row in ran)


def test_profile(tmp_path: Path) -> None:
    _, rows = _run("profile", tmp_path)
    assert {"matrix products", "attention", "all else"} <= {row["what"] for row in rows}
    assert 0 < sum(row["share"] for row in rows if not row["what"].startswith("`")) <= 1


def test_out_of_memory(tmp_path: Path) -> None:
    _, rows = _run("oom", tmp_path)
    assert [row["failed"] for row in rows] == [0] * 6
    assert all(row["largest change"] < 1e-5 for row in rows)


def test_lost_documents_are_reported() -> None:
    column = pa.array([[1.0, 2.0], None, [3.0, 4.5]], pa.list_(pa.float32(), 2))
    exact = np.array([[1, 2], [9, 9], [3, 4]], np.float32)
    assert gpu_checks._change(column, exact) == pytest.approx(0.5 / 9)
    assert gpu_checks._change(pa.nulls(3, column.type), exact) is None


def test_the_commit_may_be_given_where_there_is_no_git(tmp_path: Path) -> None:
    assert _run("environment", tmp_path, "--commit", "abc1234")[0]["commit"] == "abc1234"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["environment", "--out", str(tmp_path)]) == 2
    assert "sees no CUDA device; --tiny" in capsys.readouterr().err


def test_a_missing_library_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_NEEDED", ("numpy", "no_such_library"))
    assert gpu.main(["environment", "--tiny", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "benchmarks.gpu needs no_such_library; install them, for instance with pip\n"
