"""SIGTERM, turned into a flag that the stages look at between pieces and never in the middle of a write."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from pipeline.errors import Terminated


class Stop:
    """Set by SIGTERM (or by `set`); asked by the engines."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def install(self) -> None:
        """Take SIGTERM. Call it again after `ray.init`, which puts a handler of its own in place."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self._event.set()

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
