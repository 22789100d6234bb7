"""The two profiles of the chaos tests, and where their counts go.

`make test` runs the short profile, `make chaos` the long one: the same tests with more seeds. What they counted stands in
`build/trust/<part>.json`, by test and in total.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from filelock import FileLock

TRUST = Path(__file__).resolve().parents[2] / "build" / "trust"


def scaled(short: int, long: int) -> int:
    """`long` where the environment says CHAOS=long, else `short`."""
    profile = os.environ.get("CHAOS", "short")
    if profile not in ("short", "long"):
        raise ValueError(f"CHAOS={profile!r}; it is short or long")
    return long if profile == "long" else short


def tally(part: str, test: str, counts: dict[str, int]) -> None:
    """Put the counts of one test into `build/trust/<part>.json`, in place of those of its last run; for several processes."""
    TRUST.mkdir(parents=True, exist_ok=True)
    path = TRUST / f"{part}.json"
    with FileLock(f"{path}.lock"):
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        tests: dict[str, dict[str, int]] = {**content.get("tests", {}), test: counts}
        total: Counter[str] = Counter()
        for each in tests.values():
            total.update(each)
        path.write_text(json.dumps({"total": dict(total), "tests": tests}, indent=1, sort_keys=True) + "\n")
