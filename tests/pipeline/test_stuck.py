"""The watchdog in this process: when it barks, what it shows, and that work which moves is left alone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipeline.errors import Stuck
from pipeline.stopping import Stop
from pipeline.stuck import Watchdog, own_stacks, stacks_of


def _work() -> None:
    """Moves for a while, then hangs."""
    with Stop() as stop, Watchdog(0.5, stop, list) as watchdog:
        for _ in range(8):
            time.sleep(0.1)
            watchdog.beat()
            assert not stop.is_set()
        with stop.interruptible():
            time.sleep(30)


def test_work_that_moves_is_left_alone_and_work_that_does_not_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(Stuck, match=r"0\.5 s"):
        _work()
    assert time.monotonic() - began < 20


def test_without_a_limit_it_never_barks() -> None:
    with Stop() as stop, Watchdog(None, stop, list):
        time.sleep(0.2)
    assert not stop.is_set()


def test_stacks_name_functions_and_hold_no_values() -> None:
    secret = "-".join(["words", "of", "a", "document"])
    stacks = own_stacks()
    assert "test_stacks_name_functions_and_hold_no_values" in stacks
    assert secret not in stacks


def test_stacks_of_another_process() -> None:
    program = "import time\ndef waits(): time.sleep(60)\nprint(1, flush=True)\nwaits()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        found = stacks_of(child.pid)
    finally:
        child.kill()
        child.communicate()
    assert "waits" in found or "py-spy gave nothing" in found
    assert stacks_of(child.pid).startswith("py-spy")
