"""Ends a worker that is stuck or whose memory runs away: the stacks go to its log, and what is recorded stays.

Nothing else frees a process from a loop in native code. The piece is begun again, on Ray at once and otherwise by the same
command, and is then handled with care (`pipeline.isolation`).
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from pipeline.errors import Incomplete

_EVERY_SECONDS = 0.1
_GRACE_SECONDS = 30.0
"""Later than the limit, a timer below Python ends a process whose lock is held by the loop itself."""
_STDERR = 2

_deadlines: dict[object, float] = {}
_lock = threading.Lock()


@contextmanager
def watched(what: str, seconds: float, memory: int) -> Iterator[None]:
    """A stretch of work that may take `seconds`, in a process that may have `memory` resident bytes; `what` is for the log."""
    over = threading.Event()
    deadline = time.monotonic() + seconds
    with armed(seconds + _GRACE_SECONDS):
        threading.Thread(target=_watch, args=(what, over, deadline, memory), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()


@contextmanager
def armed(seconds: float) -> Iterator[None]:
    """A stretch of work after whose `seconds` a timer below Python ends the process, whatever holds Python's lock."""
    key = object()
    with _lock:
        _deadlines[key] = time.monotonic() + seconds
        _arm()
    try:
        yield
    finally:
        with _lock:
            del _deadlines[key]
            _arm()


def die(why: str) -> None:
    """End this process at once, with all stacks in its log; other threads get no chance to write half of something more."""
    with suppress(OSError):
        os.write(_STDERR, f"tidemill: {why}; this worker ends, and its pieces are begun again\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
    os._exit(Incomplete.exit_code)


def _watch(what: str, over: threading.Event, deadline: float, memory: int) -> None:
    process = psutil.Process()
    while not over.wait(_EVERY_SECONDS):
        if time.monotonic() > deadline:
            die(f"{what} takes longer than it may (runtime.piece_timeout)")
        if (size := process.memory_info().rss) > memory:
            die(f"{what} takes {size >> 20} MiB of memory, more than it may (runtime.worker_memory)")


def _arm() -> None:
    """There is one timer for each process: it follows the earliest deadline."""
    if _deadlines:
        faulthandler.dump_traceback_later(max(0.001, min(_deadlines.values()) - time.monotonic()), exit=True, file=_STDERR)
    else:
        faulthandler.cancel_dump_traceback_later()
