"""Notices that nothing comes out of a run any more, says where every process stands, and ends the run (exit 3)."""

from __future__ import annotations

import faulthandler
import logging
import shutil
import subprocess  # of py-spy alone  # nosec B404
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import Stuck
from pipeline.stopping import Stop

LOG = logging.getLogger("tidemill")
_PY_SPY_SECONDS = 20
_MOST_WORKERS = 16
"""Processes whose stacks are shown, at most."""


class Watchdog:
    """As a context: gives the run up where `beat` was not called for `seconds`. None: never.

    `workers` tells the processes of this machine that work for the run. Stacks are names of functions, files and lines; values,
    which may be text of documents, are not among them."""

    def __init__(self, seconds: float | None, stop: Stop, workers: Callable[[], list[int]]) -> None:
        self._seconds = seconds
        self._stop = stop
        self._workers = workers
        self._last = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """Something came out."""
        self._last = time.monotonic()

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(min(1.0, seconds / 10)):
            if time.monotonic() - self._last > seconds and not self._stop.is_set():
                LOG.error("no piece was settled for %g s; the stacks of this process:\n%s", seconds, own_stacks())
                for process in self._workers()[:_MOST_WORKERS]:
                    LOG.error("the stacks of process %d:\n%s", process, stacks_of(process))
                if self._over.is_set() or time.monotonic() - self._last <= seconds:  # the stacks took their time
                    continue
                self._stop.give_up(
                    Stuck(
                        f"no piece was settled for {seconds:g} s, so the run was given up; the log has the stacks of what hung. "
                        "What was recorded stays, and the same command goes on from there; runtime.stuck_after allows more time"
                    )
                )
                return


def own_stacks() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def stacks_of(process: int) -> str:
    """The stacks of another Python process as py-spy sees them, or why it does not."""
    beside = Path(sys.executable).parent / "py-spy"
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return "py-spy is not installed"
    try:
        done = subprocess.run(  # a list of our own, no shell  # nosec B603
            [program, "dump", "--pid", str(process)], capture_output=True, text=True, timeout=_PY_SPY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"py-spy gave nothing: {type(error).__name__}"
    return done.stdout or f"py-spy gave nothing: {(done.stderr.splitlines() or ['no reason'])[0]}"
