"""Whole jobs of ours as a user starts them: a config file and `tidemill run`, in a fresh process."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.corpus import MODEL
from benchmarks.reporting import Failed, Usage, run_command

TASK = "vector"


@dataclass(frozen=True)
class Job:
    """How the documents of a corpus (`benchmarks.corpus`) are embedded."""

    engine: str = "local"
    precision: str = "fp32"
    backend: str = "torch"
    truncate: bool = False
    """Read the first window alone, as peers do."""
    exports: Path | None = None
    """Where models for `backend` lie that `tidemill export` made."""

    def config(self, source: Path, output: Path) -> dict[str, Any]:
        """The config of the job over the corpus in `source`."""
        runtime = {"engine": self.engine, "device": "cpu", "precision": self.precision, "backend": self.backend}
        return {
            "input": {"path": str(source / "shards"), "id": "doc_id"},
            "segments": {"policy": "truncate" if self.truncate else "window"},
            "tasks": {TASK: {"head": "embedding", "model": MODEL}},
            "output": {"path": str(output)},
            "runtime": runtime | ({"exports": str(self.exports)} if self.exports else {}),
        }


def run_job(job: Job, source: Path, folder: Path) -> tuple[Usage, dict[str, Any]]:
    """Run it, its table new in `folder`/table; what it took, and its report. Failed where it did not publish."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "jobs", "run", _write(job, source, folder), "--json"]
    usage, printed = run_command(command, folder / "log.txt")
    return usage, json.loads(printed)


def export(job: Job, source: Path, folder: Path) -> str:
    """Have the model made for the job's backend and precision, in `job.exports`. Empty, or why it was not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jobs", "export", _write(job, source, folder), "--to", str(job.exports)]
    try:
        run_command(command, folder / "log.txt")
    except Failed as error:
        return str(error)
    return ""


def _write(job: Job, source: Path, folder: Path) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job.config(source, folder / "table")))
    return str(path)
