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


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "demo/corpus").rglob("*") if path.is_file()) < 700_000
