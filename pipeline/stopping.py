"""Ending early: SIGTERM and the watchdog set a flag that the stages look at between pieces, never in the middle of a write.

Where nobody looks, since the main thread hangs in a call that never returns, the process is ended all the same, some seconds
after the grace for writes is over.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.engines import GRACE_SECONDS
from pipeline.errors import Terminated, TidemillError

LAST_RESORT_SECONDS = 5.0
"""After the grace, how long until the process is ended whatever it does."""


class _Interruption(BaseException):
    """Raised by the handler; no `except Exception` on the way takes it for a failure of the work."""


class Stop:
    """Set by SIGTERM, `set` or `give_up`; asked by the engines. As a context it takes SIGTERM, and gives it back at the end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._error: TidemillError = Terminated("terminated; what was recorded stays, and the same command goes on from there")
        self._before: Any = None
        self._interruptible = False
        self._last_resort: _LastResort | None = None

    def __enter__(self) -> Stop:
        self._before = signal.getsignal(signal.SIGTERM)
        self.install()
        if _in_main_thread():
            self._last_resort = _LastResort(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._last_resort:
            self._last_resort.call_off()
            self._last_resort = None
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if kind in (_Interruption, SystemExit):  # on the way out of an interruptible stretch, or by the handler of ray.init
            self.check()

    def install(self) -> None:
        """Take SIGTERM. To be called again after `ray.init`, which puts a handler of its own in place."""
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self._event.set()
        if self._interruptible:
            self._interruptible = False
            raise _Interruption

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch of work in the main thread that SIGTERM ends at once, with the error of the stop; not for writes."""
        self.check()
        self._interruptible = True
        try:
            yield
        except _Interruption:
            self.check()
        finally:
            self._interruptible = False

    def set(self) -> None:
        """Ask for the stop from within the process."""
        self._event.set()

    def give_up(self, error: TidemillError) -> None:
        """Ask for the stop, from any thread, with this error for its reason, as SIGTERM would: at once where that can be."""
        self._error = error
        self._event.set()
        if self._last_resort:
            os.kill(os.getpid(), signal.SIGTERM)

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    @property
    def error(self) -> TidemillError:
        """What a stop ends with."""
        return self._error

    def check(self) -> None:
        """Raise the error of the stop if one was asked for."""
        if self._event.is_set():
            raise self._error


class _LastResort:
    """A thread that learns of SIGTERM even while the main thread is in a call that returns to no Python handler."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._over = threading.Event()
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="last resort", daemon=True)
        self._thread.start()

    def call_off(self) -> None:
        """The process found its way out."""
        signal.set_wakeup_fd(self._before)
        self._over.set()
        os.write(self._writes, b"\0")
        self._thread.join()
        os.close(self._reads)
        os.close(self._writes)

    def _wait(self) -> None:
        while not self._over.is_set():
            if os.read(self._reads, 1)[0] != signal.SIGTERM:
                continue
            self._stop.set()  # also where the handler of another library took the signal
            if not self._over.wait(GRACE_SECONDS + LAST_RESORT_SECONDS):
                os.write(2, f"tidemill: {self._stop.error}; the process hangs and is ended\n".encode())
                os._exit(self._stop.error.exit_code)


def _in_main_thread() -> bool:
    """Only there may handlers be set."""
    return threading.current_thread() is threading.main_thread()
