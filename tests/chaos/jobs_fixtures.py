"""Jobs as processes that can be killed, with hooks in their workers; and what is left of them, compared row by row."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from pipeline import open_output
from tests.jobs.conftest import ROOT

TOLERANCE = 2e-6
"""Largest difference of a vector's element between two runs, in float32 and unit length."""


def environment(hook: str = "", log: Path | None = None, **more: str) -> dict[str, str]:
    """For a job whose workers do what `hook` says (`tests/chaos/site/sitecustomize.py`)."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled", "CHAOS_HOOK": hook, **more}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent / "site"), str(ROOT)])
    env.pop("RAY_ADDRESS", None) if "RAY_ADDRESS" not in more else None
    if log is not None:
        log.mkdir(exist_ok=True)
        env["CHAOS_LOG"] = str(log)
    return env


def start(config: Path, *overrides: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """`tidemill run --json`, in a session of its own."""
    command = [sys.executable, "-m", "jobs", "run", str(config), *overrides, "--json"]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def never_began(stderr: str) -> bool:
    """Whether Ray gave up its own start, as it does after half a minute on a busy machine."""
    return "Ray did not start on this machine" in stderr


def records(out: Path) -> int:
    """Pieces that have a record."""
    return len(list(out.glob("_records/*/*.json")))


def wait_for_records(process: subprocess.Popen[str], out: Path, count: int, seconds: float = 120) -> bool:
    """Whether so many records appeared before the process ended."""
    deadline = time.monotonic() + seconds
    while records(out) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver; the processes that it started end by themselves, or are ended after a while."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for other in alive:
        other.kill()


def rows_of(path: Path | str, version: int | None = None) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    """The table's rows without vectors, sorted, and the vectors in the same order."""
    table = open_output(str(path), version=version).to_table()
    table = table.set_column(0, "_shard", table["_shard"].cast(pa.string()))
    table = table.sort_by([("_shard", "ascending"), ("_row", "ascending")])
    return table.drop_columns(["vector"]), np.array(table["vector"].to_pylist())


def assert_same(one: Path, other: Path) -> None:
    """Both tables hold the same rows, none twice, with vectors that differ by rounding alone."""
    (rows, vectors), (others, other_vectors) = rows_of(one), rows_of(other)
    assert rows.equals(others)
    keys = list(zip(rows["_shard"].to_pylist(), rows["_row"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys))
    assert float(np.abs(vectors - other_vectors).max()) <= TOLERANCE
