"""Commands are measured with their children, and tables are Markdown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import reporting
from benchmarks.reporting import Failed, Usage, run_command

BUSY = """
import subprocess, sys
print("ready", flush=True)
subprocess.run([sys.executable, "-c", "x = bytearray(80 << 20); sum(range(30_000_000))"], check=True)
print("done")
"""


def test_a_command_is_measured_with_its_children(tmp_path: Path) -> None:
    usage, printed = run_command([sys.executable, "-c", BUSY], tmp_path / "log")
    assert printed == "ready\ndone\n"
    assert usage.ready is not None
    assert 0 < usage.ready < usage.wall
    assert 0.05 < usage.cpu < usage.wall * reporting.CORES
    assert usage.peak_bytes > 80 << 20


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"exit 3: .*no such thing"):
        run_command([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], tmp_path / "log")


def test_commands_choose_their_own_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ['HF_HUB_OFFLINE'], os.environ['MORE'])"
    assert run_command([sys.executable, "-c", script], tmp_path / "log", {"MORE": "x"})[1] == "None 1 x\n"


def test_disturbed_runs_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "CORES", 2)
    quiet, loud = Usage(wall=10, cpu=19, others=1), Usage(wall=10, cpu=10, others=9)
    assert reporting.shares([quiet]) == ("1.90", "1.90")
    assert reporting.shares([loud]) == ("1.00", "1.10 !")


def test_tables_show_nothing_as_a_dash() -> None:
    assert reporting.table(["a", "b"], [["x", None], ["y", 2]]) == "| a | b |\n| --- | ---: |\n| x | - |\n| y | 2 |"
    assert reporting.number(1234.56, 1) == "1,234.6"
    assert reporting.number(None) is None


def test_the_header_names_machine_versions_and_commit() -> None:
    header = reporting.header("Title", ["benchmarks.run", "--rounds", "1"])
    assert header.startswith("# Title\n")
    for part in ("python -m benchmarks.run --rounds 1", f"{reporting.CORES} cores", "torch ", "ray ", "commit: ", "date: "):
        assert part in header
