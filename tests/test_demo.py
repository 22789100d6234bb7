"""The demo, end to end with a tiny model: its corpus is as demo/README.md says, and its summary finds the examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import tiny_sentence_transformer

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> str:
    """Standard output of a Python module run from the repository's root."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_the_demo_with_a_tiny_model(tmp_path: Path) -> None:
    model = tiny_sentence_transformer(tmp_path / "model")
    job = ["configs/demo.yaml", "runtime.engine=local", f"tasks.vector.model={model}", f"output.path={tmp_path / 'table'}"]
    report = json.loads(run("jobs", "run", *job, "--json"))
    books = json.loads(run("jobs", "status", str(tmp_path / "table"), "--json"))
    assert report["version"] == books["version"] == 1
    assert (books["rows_in"], books["rows_out"], books["filtered"]) == (721, 716, 0)
    assert books["quarantined"] == {"bad_encoding": 1, "bad_json": 1, "not_text": 1, "null_text": 1, "unreadable": 1}

    summary = run("demo.neighbours", *job)
    assert "721 rows in = 716 out + 5 quarantined + 0 filtered" in summary
    assert all(example in summary for example in ("violin", "loch", "Pride and Prejudice, chapter 1"))


def test_the_labels_of_the_demo(tmp_path: Path) -> None:
    # Of each document the first windows only: the whole job takes a minute.
    job = ["configs/demo_labels.yaml", "runtime.engine=local", "segments.max_segments=2", f"output.path={tmp_path / 'table'}"]
    report = json.loads(run("jobs", "run", *job, "runtime.parity_sample=2", "--json"))
    assert report["books"]["quarantined"] == {}
    assert report["statistics"]["encoder_passes"] == 2 * report["pieces"]
    assert {task: found["apart"] for task, found in report["parity"].items()} == {"found": 0, "sentiment": 0}

    shown = run("demo.labels", *job)
    assert "\u6c5f\u6cfd\u6c11" in shown  # a name that stands in the first document
    scores = json.loads(run("jobs", "eval", str(tmp_path / "table"), "--task", "sentiment", "--gold", "label", "--json"))
    assert scores["rows"] == 300
    assert scores["overall"]["accuracy"] > 0.75
    assert f"accuracy {scores['overall']['accuracy']:.3f}, 300 reviews" in shown


def test_the_corpora_and_models_stay_small() -> None:
    sizes = {name: sum(f.stat().st_size for f in (ROOT / "demo" / name).rglob("*") if f.is_file()) for name in _LIMITS}
    assert all(sizes[name] < limit for name, limit in _LIMITS.items()), sizes


_LIMITS = {"corpus": 700_000, "corpus_zh": 500_000, "models": 12_000_000}
"""Bytes."""
