"""SIGTERM as a flag, and as an interruption of work that may be interrupted."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from pipeline.errors import Terminated
from pipeline.stopping import Stop


def test_a_signal_outside_of_interruptible_work_is_only_remembered() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(Terminated):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is before


def test_interruptible_work_ends_at_once_and_no_handler_takes_it_for_a_failure() -> None:
    reached = []

    def work() -> None:
        with suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("after the signal")
        reached.append("behind the handler")

    with Stop() as stop, pytest.raises(Terminated), stop.interruptible():
        work()
    assert reached == []


def test_interruptible_work_does_not_begin_after_a_stop() -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Terminated), stop.interruptible():
        pytest.fail("begun")
