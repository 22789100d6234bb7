"""The Ray engine as users start it: clusters of its own and one that was there before, a worker that dies, S3."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest

from tests.chaos.jobs_fixtures import TOLERANCE, environment, start, wait_for_records
from tests.jobs.conftest import ROOT, write_corpus
from tests.jobs.reports import by_id, report

pytestmark = pytest.mark.ray
Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


_AS_A_NOTEBOOK = """
import json, sys
import ray
from pipeline import flow
from pipeline.config import load
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**28, log_to_driver=False)
for overrides in json.loads(sys.argv[2]):
    print(json.dumps(flow.run(load(sys.argv[1], overrides))), flush=True)
    assert ray.is_initialized()
"""
"""Jobs one after another in a process that joined Ray itself."""


def test_workers_packs_stages_and_order_of_shards_change_no_vector(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=4)
    base = job()
    report(tidemill("run", base, "--json"))
    reference = by_id(tmp_path / "out")
    assert len(reference) == rows
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for i, shard in enumerate(sorted((tmp_path / "in").iterdir(), reverse=True)):
        shutil.copy(shard, shuffled / f"{i}-{shard.name}")
    variants = {
        "one": ["runtime.workers=1", "runtime.tokens_per_pack=50"],
        "two": ["runtime.workers=2", f"input.path={shuffled}"],
        "split": ["runtime.workers=2", "runtime.stages=split", "runtime.tokens_per_pack=4096"],
    }
    jobs = [["runtime.engine=ray", f"output.path={tmp_path / name}", *overrides] for name, overrides in variants.items()]
    command = [sys.executable, "-c", _AS_A_NOTEBOOK, str(base), json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line)["books"]["rows_out"] for line in done.stdout.splitlines()] == [rows] * len(jobs)
    for name in variants:
        other = by_id(tmp_path / name)
        assert other.keys() == reference.keys()
        assert max(float(np.abs(other[k] - v).max()) for k, v in reference.items()) <= TOLERANCE


def test_kill_of_an_encoder_costs_a_restart_and_not_the_job(tmp_path: Path, job: Job) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    process = start(config, env=environment())
    assert wait_for_records(process, out, 2), process.communicate()[1][-3000:]
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in " ".join(p.cmdline())]
    assert workers
    workers[0].kill()
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-3000:]
    assert json.loads(stdout)["books"]["rows_out"] == rows == len(by_id(out))


def test_restarts_are_bounded(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray", "workers": 1}), tmp_path / "out"
    process = start(config, "runtime.max_restarts=0", env=environment())
    assert wait_for_records(process, out, 2), process.communicate()[1][-3000:]
    [w.kill() for w in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in " ".join(w.cmdline())]
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr[-3000:]
    assert json.loads(stdout)["exit_code"] == 3
    assert not (out / "_commits").exists()
    assert report(tidemill("run", config, "runtime.engine=local", "--json"))["books"]["rows_out"] == rows


def test_sigterm_records_what_is_in_flight_and_exits_143(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    process = start(config, env=environment())
    assert wait_for_records(process, out, 2), process.communicate()[1][-3000:]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 143
    assert not (out / "_commits").exists()
    done = report(tidemill("run", config, "runtime.engine=local", "--json"))
    assert done["reused"] >= 2
    assert done["books"]["rows_out"] == rows


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_from_s3_to_s3(tmp_path: Path, job: Job, tidemill: Tidemill, s3_server: Any, engine: str) -> None:
    rows = write_corpus(tmp_path / "in")
    bucket = s3_server.make_bucket()
    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    fs.put(f"{tmp_path / 'in'}/", f"{bucket}/corpus/", recursive=True)
    config = job(
        input={"path": f"s3://{bucket}/corpus/", "storage_options": s3_server.storage_options},
        output={"path": f"s3://{bucket}/table"},
        runtime={"engine": engine, "device": "cpu"},
    )
    first = report(tidemill("run", config, "--json"))
    assert (first["books"]["rows_out"], first["duplicate_ids"]) == (rows, 0)
    again = report(tidemill("run", config, "--json"))
    assert (again["published"], again["encoded"]) == (False, 0)
    vectors = by_id(f"s3://{bucket}/table", storage_options=s3_server.storage_options)
    report(tidemill("run", job(), "--json"))
    local = by_id(tmp_path / "out")
    assert vectors.keys() == local.keys()
    assert max(float(np.abs(vectors[k] - v).max()) for k, v in local.items()) <= TOLERANCE
    option = f"endpoint_url={s3_server.endpoint_url}"
    status = report(tidemill("status", f"s3://{bucket}/table", "--storage-option", option, "--json"))
    assert status["rows_out"] == rows
