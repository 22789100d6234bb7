"""The parity self-test in whole jobs: within tolerance it is reported, out of it the run is held and can be accepted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import open_output
from tests.jobs.conftest import write_corpus
from tests.jobs.reports import report

Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_run_within_tolerance_reports_and_publishes(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=2)
    config = job(runtime={"parity_sample": 9})
    done = report(tidemill("run", config, "--json"))
    found = done["parity"]["vector"]
    assert done["published"]
    assert 9 <= found["documents"] <= 11
    assert found["apart"] == 0
    assert found["similarity"] == pytest.approx(1, abs=1e-5)
    assert not [name for name in done["statistics"] if "parity" in name]


def test_a_run_out_of_tolerance_is_held_and_accepted_later_without_encoding(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=2)
    # bf16 on purpose, and held to what only fp32 can do.
    config = job(runtime={"precision": "bf16", "parity_sample": 20, "parity_similarity": 0.9999999})
    held = report(tidemill("run", config, "--json"), code=4)
    assert held["exit_code"] == 4
    assert "task vector" in held["error"]
    assert f"tidemill publish {tmp_path / 'out'} --accept {held['run_id']}" in held["error"]
    assert tidemill("status", tmp_path / "out", "--json").returncode == 2  # nothing was published

    again = report(tidemill("run", config, "--json"), code=4)  # all pieces are recorded, and what was found with them
    assert again["run_id"] != held["run_id"]
    files = sorted((tmp_path / "out" / "data").rglob("*.parquet"))

    accepted = report(tidemill("publish", tmp_path / "out", "--accept", held["run_id"], "--json"))
    assert (accepted["version"], accepted["published"], accepted["run_id"]) == (1, True, held["run_id"])
    assert sorted((tmp_path / "out" / "data").rglob("*.parquet")) == files
    assert open_output(str(tmp_path / "out")).count_rows() == rows
    once_more = report(tidemill("publish", tmp_path / "out", "--accept", again["run_id"], "--json"))
    assert (once_more["version"], once_more["published"]) == (1, False)
    assert report(tidemill("run", config, "--json"))["encoded"] == 0  # what was accepted stands


def test_a_held_run_does_not_take_the_table_back(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    # A task's name may hold what separates names elsewhere.
    task = {"a:b": yaml.safe_load(job().read_text())["tasks"]["vector"]}
    strict = {"precision": "bf16", "parity_sample": 20, "parity_similarity": 0.9999999}
    held = report(tidemill("run", job(tasks=task, runtime=strict), "--json"), code=4)
    shutil.copy(tmp_path / "in" / "part-0.parquet", tmp_path / "in" / "part-9.parquet")
    newer = report(tidemill("run", job(tasks=task, runtime={**strict, "parity_apart": 1.0}), "--json"))
    assert newer["version"] == 1
    refused = report(tidemill("publish", tmp_path / "out", "--accept", held["run_id"], "--json"), code=0)
    assert (refused["version"], refused["published"]) == (1, False)  # its pieces stand there already

    write_corpus(tmp_path / "in", shards=1, rows=30)  # the shard that it saw has changed
    assert report(tidemill("run", job(tasks=task, runtime={**strict, "parity_apart": 1.0}), "--json"))["version"] == 2
    refused = report(tidemill("publish", tmp_path / "out", "--accept", held["run_id"], "--json"), code=5)
    assert "Run the job again" in refused["error"]


def test_publish_refuses_what_is_no_allowed_path_and_prints_no_secret(tidemill: Tidemill) -> None:
    for path in ("s3://user:hunter2@bucket/x", "simplecache::file:///tmp/x", "http://localhost:1/x"):
        refused = tidemill("publish", path, "--accept", "abc", "--json")
        assert refused.returncode == 2, refused.stderr[-2000:]
        assert "hunter2" not in refused.stdout + refused.stderr


def test_names_with_brackets_are_printed_as_they_are(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=3)
    out = tmp_path / "[bold]" / "[/x]"
    shown = tidemill("run", job(output={"path": str(out)}), env={"COLUMNS": "300"})
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "[bold]" in shown.stdout
    assert tidemill("status", out).returncode == 0


@pytest.mark.parametrize("run_id", ["0123456789abcdef", "../x"])
def test_a_run_that_is_not_held_is_refused(run_id: str, tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    report(tidemill("run", job(), "--json"))
    refused = report(tidemill("publish", tmp_path / "out", "--accept", run_id, "--json"), code=2)
    assert refused["error"].startswith("--accept: ")
