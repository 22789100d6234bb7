"""Work that hangs, work that is only slow, and signals: every way out is bounded, and what was recorded stays."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import flow
from pipeline.config import load
from tests.chaos.jobs_fixtures import environment, kill, records, start
from tests.chaos.profile import scaled, tally
from tests.jobs.conftest import write_corpus

Job = Callable[..., Path]


def _ends(
    config: Path, hook: str, *overrides: str, stop: signal.Signals | None = None, engine: str = "local"
) -> tuple[int, str, str, float]:
    """Exit code, both outputs, and the seconds from the signal, or from the start without one."""
    log = config.parent / "log"
    process = start(config, f"runtime.engine={engine}", *overrides, env=environment(hook, log))
    began = time.monotonic()
    try:
        if stop is not None:
            while not list(log.glob("hangs-*")):
                assert process.poll() is None, process.communicate()[1][-3000:]
                assert time.monotonic() - began < 120
                time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(stop)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            kill(process)
    return process.returncode, stdout, stderr, time.monotonic() - began


def _goes_on(config: Path, rows: int) -> None:
    """The same command, without hooks, does the rest and no recorded piece again."""
    recorded = records(config.parent / "out")
    assert not (config.parent / "out" / "_commits").exists()
    done = flow.run(load(config))
    assert done["reused"] == recorded
    assert done["books"]["rows_out"] == rows
    assert records(config.parent / "out") == done["pieces"]


@pytest.mark.slow
def test_a_piece_that_hangs_ends_the_run_with_stacks_and_without_text(tmp_path: Path, job: Job) -> None:
    rows, config = write_corpus(tmp_path / "in", shards=5), job()
    code, stdout, stderr, seconds = _ends(config, "hang:d4-,grace:1", "runtime.stuck_after=12")
    assert code == 3, stderr[-3000:]
    assert json.loads(stdout)["exit_code"] == 3
    assert "no piece was settled for 12 s" in json.loads(stdout)["error"]
    assert "sitecustomize.py" in stderr
    assert "in call" in stderr
    assert not any(word in stderr for word in ("lantern", "thunder", "meadow"))
    assert seconds < 40
    _goes_on(config, rows)
    tally("kills", "hang, local", {"hangs": 1, "rows_lost": 0, "rows_doubled": 0})


@pytest.mark.slow
def test_a_native_call_that_never_returns_is_ended_by_sigterm(tmp_path: Path, job: Job) -> None:
    rows, config = write_corpus(tmp_path / "in", shards=5), job()
    code, _, stderr, seconds = _ends(config, "block:d4-,grace:1", stop=signal.SIGTERM)
    assert code == 143, stderr[-3000:]
    assert "the process hangs and is ended" in stderr
    assert seconds < 15
    _goes_on(config, rows)
    tally("kills", "hang in native code, local", {"hangs": 1, "rows_lost": 0, "rows_doubled": 0})


@pytest.mark.slow
def test_a_slow_piece_is_waited_for(tmp_path: Path, job: Job) -> None:
    rows, config = write_corpus(tmp_path / "in", shards=6), job()
    code, stdout, stderr, _ = _ends(config, "slow:3", "runtime.stuck_after=17")
    assert code == 0, stderr[-3000:]
    assert json.loads(stdout)["books"]["rows_out"] == rows


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not scaled(0, 1), reason="a minute and more: CHAOS=long")
def test_an_actor_that_hangs_ends_the_run_with_its_stack(tmp_path: Path, job: Job) -> None:
    rows, config = write_corpus(tmp_path / "in", shards=5), job()
    overrides = ("runtime.stuck_after=40", "runtime.workers=1")
    code, stdout, stderr, seconds = _ends(config, "hang:d4-,grace:2", *overrides, engine="ray")
    assert code == 3, stderr[-3000:]
    assert "no piece was settled for 40 s" in json.loads(stdout)["error"]
    assert "stacks of process" in stderr
    assert "FusedWorker" in stderr or "sitecustomize.py" in stderr, stderr[-3000:]
    assert not any(word in stderr for word in ("lantern", "thunder", "meadow"))
    assert seconds < 120
    _goes_on(config, rows)
    tally("kills", "hang, ray", {"hangs": 1, "rows_lost": 0, "rows_doubled": 0})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)][: scaled(0, 2)])
def test_signals_end_a_run_on_ray_in_bounded_time_even_where_an_actor_hangs(
    tmp_path: Path, job: Job, stop: signal.Signals, code: int
) -> None:
    rows, config = write_corpus(tmp_path / "in", shards=5), job()
    ended, stdout, stderr, seconds = _ends(config, "hang:d4-,grace:2", "runtime.workers=1", stop=stop, engine="ray")
    assert ended == code, stderr[-3000:]
    assert json.loads(stdout)["exit_code"] == code
    assert seconds < 30
    _goes_on(config, rows)
