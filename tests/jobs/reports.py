"""What a command printed, and the vectors that it left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import open_output


def report(process: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    """What a command with `--json` printed, which has to have ended with `code`."""
    assert process.returncode == code, process.stderr[-3000:]
    return json.loads(process.stdout)


def by_id(path: Path | str, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A table's vectors by id; no id stands there twice."""
    table = open_output(str(path), **options).to_table(columns=["id", "vector"])
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, np.array(table["vector"].to_pylist()), strict=True))
