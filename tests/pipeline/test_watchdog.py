"""The watchdog ends a stuck process, with its stacks in the log, and leaves one alone that comes back."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.watchdog import armed, watched

ROOT = Path(__file__).resolve().parents[2]


def _script(body: str) -> subprocess.CompletedProcess[str]:
    code = f"import ctypes, time\nimport pipeline.watchdog as w\n{body}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("with w.watched('the piece', 0.3, 1 << 40):\n def spin():\n  while True: pass\n spin()", 3, "piece_timeout"),
        ("with w.watched('the piece', 60, 1 << 20):\n time.sleep(30)", 3, "worker_memory"),
        # Python's lock is never given back: only the timer below Python is left.
        ("w._GRACE_SECONDS = 0.2\nwith w.watched('the piece', 0.3, 1 << 40):\n ctypes.PyDLL(None).pause()", 1, "Timeout"),
    ],
)
def test_what_does_not_come_back_is_ended(work: str, code: int, said: str) -> None:
    done = _script(work)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "most recent call first" in done.stderr


def test_what_comes_back_is_left_alone() -> None:
    with watched("one", 0.2, 1 << 40), watched("two", 0.3, 1 << 40):
        pass
    with armed(0.2), armed(50):
        pass
    time.sleep(0.5)
