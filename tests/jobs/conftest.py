"""A small corpus with every kind of bad row, a tiny model, and the command line as a real process."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.tiny import tiny_sentence_transformer

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "river", "mountain", "quiet", "engine", "letter", "window", "garden", "silver", "morning", "answer",
    "bridge", "copper", "thunder", "meadow", "lantern", "harbor", "winter", "story", "pepper", "candle",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded two-layer sentence-transformers model with windows of 32 tokens."""
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"), max_seq_length=32)


def text(seed: int, words: int) -> str:
    """Deterministic prose."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write_corpus(folder: Path, shards: int = 3, rows: int = 40) -> int:
    """Good shards in Parquet and JSONL, with short, long and empty texts; returns the number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for s in range(shards):
        records = [
            {"doc": f"d{s}-{r}", "lang": "en" if r % 3 else "zh", "text": text(s * 1000 + r, (r * 7) % 150)} for r in range(rows)
        ]
        total += rows
        if s % 3 == 0:
            table = pa.Table.from_pylist(records)
            pq.write_table(table, folder / f"part-{s}.parquet", row_group_size=17)
        elif s % 3 == 1:
            (folder / f"part-{s}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        else:
            with gzip.open(folder / f"part-{s}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(r) + "\n" for r in records)
    return total


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes a config over `tmp_path/in` -> `tmp_path/out`; keyword arguments replace whole sections."""

    def write(**sections: Any) -> Path:
        config: dict[str, Any] = {
            "name": "test",
            "input": {"path": str(tmp_path / "in"), "keep": ["lang"], "id": "doc"},
            "segments": {"overlap": 6},
            "tasks": {"vector": {"head": "embedding", "model": str(tiny_model)}},
            "output": {"path": str(tmp_path / "out")},
            "runtime": {"engine": "local", "device": "cpu"},
        }
        for name, section in sections.items():
            config[name] = {**config[name], **section} if isinstance(section, dict) and name != "tasks" else section
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return write


@pytest.fixture
def tidemill() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m jobs ARGUMENTS` and returns the finished process."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs", *map(str, arguments)],
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    return run
