"""`tidemill vacuum` on tables of real jobs: one that was killed mid-way, one with many versions; what is left is right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import vacuum
from pipeline import open_output
from pipeline.config import from_dict
from pipeline.errors import ConfigError
from pipeline.flow import run
from tests.jobs.conftest import ROOT, write_corpus

Job = Callable[..., Path]


def go(config: Path) -> dict[str, Any]:
    return run(from_dict(yaml.safe_load(config.read_text())))


def swept(output: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    capsys.readouterr()
    vacuum.command(str(output), json=True, **options)
    return dict(json.loads(capsys.readouterr().out))


def rows(output: Path) -> list[dict[str, Any]]:
    table = open_output(str(output)).to_table()
    return sorted(table.to_pylist(), key=lambda row: (row["_shard"], row["_row"]))


def kill_midway(config: Path, output: Path) -> None:
    """Run it as a process and kill that as soon as some piece, not all, has a record."""
    before = len(list(output.glob("_records/*/*.json")))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "run", str(config), "input.piece=2KiB"],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(output.glob("_records/*/*.json"))) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_vacuumed_and_run_again(tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "in", shards=6)
    config, output = job(input={"piece": "2KiB"}), tmp_path / "out"
    kill_midway(config, output)
    assert not list(output.glob("_commits/*.json"))
    assert list(output.glob("_records/*/*.json"))
    with pytest.raises(ConfigError, match="no committed table"):
        swept(output, capsys)

    first = go(config)
    assert first["reused"] > 0
    write_corpus(tmp_path / "in", shards=9)
    kill_midway(config, output)
    for _ in range(2):  # nobody is at work: a grace of 0 does for both phases
        swept(output, capsys, delete=True, grace="0s")
    go(config)
    again = job(input={"piece": "2KiB"}, output={"path": str(tmp_path / "scratch")})
    go(again)
    assert rows(output) == rows(tmp_path / "scratch")

    for _ in range(2):
        swept(output, capsys, delete=True, grace="0s", keep_versions=1)
    named = {os.path.relpath(name, output) for name in open_output(str(output)).files}
    assert {str(path.relative_to(output)) for path in output.glob("data/*/*")} == named
    assert rows(output) == rows(tmp_path / "scratch")
    nothing = go(config)
    assert (nothing["encoded"], nothing["published"]) == (0, False)
    with pytest.raises(ConfigError, match="no version 1"):
        open_output(str(output), version=1)


def test_it_only_says_what_would_go(tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=4)
    config, output = job(), tmp_path / "out"
    go(config)
    write_corpus(tmp_path / "in", shards=2, rows=4)
    go(config)
    stray = output / "data" / "stray.parquet"
    stray.write_bytes(b"x" * 2048)
    os.utime(stray, (1, 1))

    found = swept(output, capsys, keep_versions=1, grace="0s")
    assert (found["deleted"], found["versions"], found["grace"]) == (False, [1], 0)
    assert "data/stray.parquet" in found["waiting"]["keys"]
    assert stray.exists()
    assert len(list(output.glob("_commits/*.json"))) == 2
    assert not list(output.glob("_vacuum/*"))

    week = swept(output, capsys, keep_versions=1)
    assert (week["versions"], week["waiting"]) == ([], {"count": 1, "bytes": 2048, "keys": ["data/stray.parquet"]})
    vacuum.command(str(output), keep_versions=1)
    said = capsys.readouterr().out
    assert "files that nothing names now" in said
    assert "nothing was removed; --delete removes it" in said


@pytest.mark.parametrize("text", ["7", "-1d", "soon", "1.5h"])
def test_a_grace_is_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time"):
        vacuum.seconds(text)
    assert vacuum.seconds("2w") == 14 * 86400
