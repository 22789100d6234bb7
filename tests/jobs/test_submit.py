"""`tidemill submit`, and Ray's own `ray job submit`, to a head with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.chaos.jobs_fixtures import wait_for_records
from tests.emulators.servers import free_port
from tests.jobs.conftest import ROOT, write_corpus
from tests.jobs.ray_heads import running_head
from tests.jobs.reports import by_id, report

pytestmark = pytest.mark.ray
Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Head:
    """A running Ray head and what a client needs to talk to it."""

    address: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with token authentication and a job server."""
    port, dashboard = free_port(), free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "HF_HUB_OFFLINE": "1"}
    env.pop("RAY_ADDRESS", None)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    options = {"dashboard_port": dashboard, "num_cpus": 2, "object_store_memory": 300_000_000, "include_dashboard": "true"}
    log = tmp_path_factory.mktemp("head") / "log"
    with running_head(log, env, dashboard, port=port, **options):
        address = f"http://127.0.0.1:{dashboard}"
        yield Head(address, {**env, "RAY_ADDRESS": address})


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
