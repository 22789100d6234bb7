"""Nothing is decided by a clock: a machine a day ahead, a day behind, or whose clock goes back makes the same table."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline import flow
from pipeline.config import load
from pipeline.ledger.publish import head
from pipeline.ledger.store import open_store
from tests.chaos.jobs_fixtures import assert_same, environment, start, wait_for_records
from tests.chaos.profile import scaled, tally
from tests.jobs.conftest import write_corpus

Job = Callable[..., Path]


def _library() -> Path | None:
    """libfaketime of the package of that name, which is among the development dependencies."""
    spec = importlib.util.find_spec("libfaketime")
    folder = Path(spec.origin or "").parent if spec else Path("absent")
    return next(iter(folder.rglob("libfaketime.so.1")), None)


@pytest.mark.slow
@pytest.mark.skipif(_library() is None, reason="the package libfaketime carries no library for this machine")
@pytest.mark.parametrize(("before", "after"), [("+1d", "-1d"), ("-1d", "-1d"), ("+1d", "+1d")][: scaled(1, 3)])
def test_a_clock_that_is_wrong_changes_nothing(tmp_path: Path, job: Job, before: str, after: str) -> None:
    rows = write_corpus(tmp_path / "in", shards=6)
    config = job()
    calm = flow.run(load(config, [f"output.path={tmp_path / 'calm'}"]))
    clock = tmp_path / "clock"
    clock.write_text(f"{before}\n")
    env = environment(
        "slow:0.2",
        LD_PRELOAD=str(_library()),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    process = start(config, env=env)
    assert wait_for_records(process, tmp_path / "out", 2), process.communicate()[1][-3000:]
    clock.write_text(f"{after}\n")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr[-3000:]
    done = json.loads(stdout)
    assert done["books"]["rows_out"] == rows
    assert (done["generation"], done["pieces"]) == (calm["generation"], calm["pieces"])
    assert_same(tmp_path / "out", tmp_path / "calm")
    commit, other = (head(open_store(str(tmp_path / name))) for name in ("out", "calm"))
    assert commit is not None
    assert other is not None
    off = datetime.fromisoformat(commit.created_at) - datetime.now(UTC)
    assert abs(off - timedelta(days=1 if after == "+1d" else -1)) < timedelta(hours=1)  # the clock was wrong indeed
    assert (commit.fingerprint, commit.pins, commit.schema) == (other.fingerprint, other.pins, other.schema)
    # Records are found again by a machine whose clock is right, and by one whose clock is not.
    assert flow.run(load(config))["published"] is False
    tally("kills", f"clock {before} then {after}", {"clocks": 1, "rows_lost": 0, "rows_doubled": 0})
