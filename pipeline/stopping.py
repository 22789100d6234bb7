"""SIGTERM, turned into a flag that the stages look at between pieces and never in the middle of a write."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.errors import Terminated


class _Interruption(BaseException):
    """Raised by the handler; no `except Exception` on the way takes it for a failure of the work."""


class Stop:
    """Set by SIGTERM (or by `set`); asked by the engines. As a context it takes SIGTERM, and gives it back at the end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: Any = None
        self._interruptible = False

    def __enter__(self) -> Stop:
        self._before = signal.getsignal(signal.SIGTERM)
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if kind is _Interruption:  # raised on the way out of an interruptible stretch
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
        """A stretch of work in the main thread that SIGTERM ends at once, with `Terminated`; not for writes."""
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

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Terminated` if a stop was asked for."""
        if self._event.is_set():
            raise Terminated("terminated; what was recorded stays, and the same command goes on from there")


def _in_main_thread() -> bool:
    """Only there may handlers be set."""
    return threading.current_thread() is threading.main_thread()
