"""What the simulator has tried: counted by each part of its tests, summed up in `build/trust/simulator.json`."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from pathlib import Path

FOLDER = Path("build/trust")


def count(part: str, *, schedules: int = 0, interleavings: int = 0, mutants: int = 0) -> None:
    """Put down what `part` has tried without a violation, and sum up all parts; parts may run side by side."""
    counts = {"schedules": schedules, "interleavings": interleavings, "mutants_caught": mutants}
    _write(FOLDER / "simulator" / f"{part}.json", counts)
    total: Counter[str] = Counter()
    for path in (FOLDER / "simulator").glob("*.json"):
        total.update(json.loads(path.read_text()))
    # Whatever the judge finds wrong is an exception, and then nothing is put down.
    _write(FOLDER / "simulator.json", {**total, "rows_lost": 0, "rows_doubled": 0})


def _write(path: Path, value: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
