"""`tidemill submit`, and Ray's own `ray job submit`, to a head with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import shutil
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

import psutil
import pytest

from tests.chaos.jobs_fixtures import wait_for_records
from tests.jobs.conftest import ROOT, write_corpus
from tests.jobs.reports import by_id, report

pytestmark = pytest.mark.ray
Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


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
        _, alive = psutil.wait_procs(family, timeout=15)
        for lingering in alive:
            lingering.kill()
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
    process = subprocess.Popen(command, cwd=ROOT, env=head.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_for_records(process, out, 2), process.communicate()[1][-3000:]
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
