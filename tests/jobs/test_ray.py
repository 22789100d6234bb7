"""The Ray engine as users start it: local clusters, real kills, S3, and `tidemill submit` to a head with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import fsspec
import numpy as np
import psutil
import pytest

from pipeline import open_output
from tests.jobs.conftest import ROOT, write_corpus

pytestmark = pytest.mark.ray
Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]
TOLERANCE = 2e-6
"""Largest difference of a vector's element between workers, packs and engines, in float32 and unit length."""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def report(process: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert process.returncode == code, process.stderr[-3000:]
    return json.loads(process.stdout)


def by_id(path: Path | str, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    table = open_output(str(path), **options).to_table(columns=["id", "vector"])
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, np.array(table["vector"].to_pylist()), strict=True))


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
    for name, overrides in variants.items():
        done = report(tidemill("run", base, "runtime.engine=ray", f"output.path={tmp_path / name}", *overrides, "--json"))
        assert done["books"]["rows_out"] == rows
        other = by_id(tmp_path / name)
        assert other.keys() == reference.keys()
        assert max(float(np.abs(other[k] - v).max()) for k, v in reference.items()) <= TOLERANCE


def _records(out: Path) -> int:
    return len(list(out.glob("_records/*/*.json")))


def _start(config: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs", "run", str(config), *overrides, "--json"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def _wait_for_records(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while _records(out) < count:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_of_the_driver_loses_nothing_and_encodes_no_recorded_piece_again(
    tmp_path: Path, job: Job, tidemill: Tidemill
) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    process = _start(config)
    _wait_for_records(process, out, 3)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.communicate()
    _reap(family)
    recorded = _records(out)
    assert 3 <= recorded < 24
    assert not (out / "_commits").exists()
    again = report(tidemill("run", config, "--json"))
    assert again["reused"] == recorded
    assert again["encoded"] == again["pieces"] - recorded
    assert again["books"]["rows_out"] == rows == len(by_id(out))


def test_kill_of_an_encoder_costs_a_restart_and_not_the_job(tmp_path: Path, job: Job) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    process = _start(config)
    _wait_for_records(process, out, 2)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in " ".join(p.cmdline())]
    assert workers
    workers[0].kill()
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-3000:]
    assert json.loads(stdout)["books"]["rows_out"] == rows == len(by_id(out))


def test_restarts_are_bounded(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray", "workers": 1}), tmp_path / "out"
    process = _start(config, "runtime.max_restarts=0")
    _wait_for_records(process, out, 2)
    [w.kill() for w in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in " ".join(w.cmdline())]
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr[-3000:]
    assert json.loads(stdout)["exit_code"] == 3
    assert not (out / "_commits").exists()
    assert report(tidemill("run", config, "runtime.engine=local", "--json"))["books"]["rows_out"] == rows


def test_sigterm_records_what_is_in_flight_and_exits_143(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    process = _start(config)
    _wait_for_records(process, out, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 143
    assert not (out / "_commits").exists()
    done = report(tidemill("run", config, "runtime.engine=local", "--json"))
    assert done["reused"] >= 2
    assert done["books"]["rows_out"] == rows


def _reap(family: list[psutil.Process]) -> None:
    """The Ray processes of a killed driver end by themselves; those that linger were started by this test."""
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()


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


@dataclass(frozen=True)
class Head:
    """A running Ray head and what a client needs to talk to it."""

    address: str
    env: dict[str, str]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with token authentication, in a temporary folder of its own."""
    port, dashboard = _free_port(), _free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "HF_HUB_OFFLINE": "1"}
    env.pop("RAY_ADDRESS", None)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    # Ray's sockets live below its folder and their paths are limited to 107 bytes.
    folder = Path("/tmp") / f"tm{os.getpid()}"
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "num-cpus": 2,
        "object-store-memory": 300_000_000,
        "temp-dir": folder,
        "include-dashboard": "true",
    }
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--block", "--disable-usage-stats", *(f"--{k}={v}" for k, v in options.items())]
    log = (tmp_path_factory.mktemp("head") / "log").open("w+")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(process, dashboard, log.name)
        yield Head(address, {**env, "RAY_ADDRESS": address})
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _reap(family)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, Path(log).read_text()[-2000:]
        assert time.monotonic() < deadline, Path(log).read_text()[-2000:]
        time.sleep(0.3)


def test_submit_runs_the_job_on_the_cluster_and_is_idempotent(tmp_path: Path, job: Job, tidemill: Tidemill, head: Head) -> None:
    rows = write_corpus(tmp_path / "in")
    config = job(runtime={"engine": "ray"})
    first = report(tidemill("submit", config, "--json", env=head.env))
    assert (first["status"], first["exit_code"]) == ("SUCCEEDED", 0)
    assert len(by_id(tmp_path / "out")) == rows
    again = report(tidemill("submit", config, "--json", env=head.env))
    assert again["submission_id"] == first["submission_id"]


def test_submit_ends_with_the_jobs_own_code(tmp_path: Path, job: Job, tidemill: Tidemill, head: Head) -> None:
    write_corpus(tmp_path / "in")
    config = job(input={"path": str(tmp_path / "nothing-here")}, runtime={"engine": "ray"})
    failed = tidemill("submit", config, "--json", env=head.env)
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert json.loads(failed.stdout)["status"] == "FAILED"
    assert "input.path" in failed.stderr


def call(head: Head, method: str, path: str) -> Any:
    """One request to the job server, with the head's token."""
    headers = {"Authorization": f"Bearer {head.env['RAY_AUTH_TOKEN']}"}
    with urlopen(Request(f"{head.address}/api/{path}", method=method, headers=headers)) as answer:
        return json.load(answer)


def test_a_stopped_job_ends_with_143_and_is_taken_up_again(tmp_path: Path, job: Job, tidemill: Tidemill, head: Head) -> None:
    rows = write_corpus(tmp_path / "in", shards=24, rows=120)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    command = [sys.executable, "-m", "jobs", "submit", str(config), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, env=head.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _wait_for_records(process, out, 2)
    (submission,) = [j["submission_id"] for j in call(head, "GET", "jobs/") if j["status"] == "RUNNING"]
    call(head, "POST", f"jobs/{submission}/stop")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr[-3000:]
    assert json.loads(stdout)["submission_id"] == submission
    again = report(tidemill("submit", config, "--json", env=head.env))
    assert again["submission_id"] == submission.removesuffix("-1") + "-2"
    assert len(by_id(out)) == rows


def test_submit_without_the_token_is_refused(tmp_path: Path, job: Job, tidemill: Tidemill, head: Head) -> None:
    write_corpus(tmp_path / "in", shards=1)
    env = {**head.env, "RAY_AUTH_TOKEN": "0" * 64}
    refused = tidemill("submit", job(runtime={"engine": "ray"}), env=env)
    assert refused.returncode == 1
    assert head.env["RAY_AUTH_TOKEN"] not in refused.stderr


def test_the_head_asks_everybody_for_its_token(head: Head) -> None:
    """As on any cluster that is not to be run by whoever reaches it (ShadowRay)."""
    for method, path in (("POST", "jobs/"), ("GET", "jobs/"), ("GET", "version")):
        for headers in ({}, {"Authorization": f"Bearer {'0' * 64}"}):
            request = Request(f"{head.address}/api/{path}", b"{}" if method == "POST" else None, headers, method=method)
            with pytest.raises(HTTPError) as refused:
                urlopen(request)
            assert refused.value.code in (401, 403), (method, path)
            refused.value.close()
    assert call(head, "GET", "version")["ray_version"]


def test_a_job_carries_no_packages_and_no_secrets(tmp_path: Path, job: Job, tidemill: Tidemill, head: Head) -> None:
    config = job(input={"path": str(tmp_path / "none")}, runtime={"engine": "ray"}, name="lean")
    tidemill("submit", config, "--no-wait", env={**head.env, "AWS_SECRET_ACCESS_KEY": "canary-of-the-submitter"})
    (found,) = [j for j in call(head, "GET", "jobs/") if j["submission_id"].startswith("lean-")]
    assert set(found["runtime_env"]) <= {"working_dir", "env_vars", "_ray_commit"}
    assert found["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_"), "uploaded by the submitter"
    assert "canary-of-the-submitter" not in json.dumps(found)
    assert head.env["RAY_AUTH_TOKEN"] not in json.dumps(found)


def test_plain_ray_job_submit_with_the_checkout_as_working_dir(tmp_path: Path, job: Job, head: Head) -> None:
    rows = write_corpus(tmp_path / "in")
    config = job(runtime={"engine": "ray"})
    ray = str(Path(sys.executable).parent / "ray")
    command = [
        ray,
        "job",
        "submit",
        "--address",
        head.address,
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "jobs",
        "run",
        str(config),
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **head.env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(by_id(tmp_path / "out")) == rows
