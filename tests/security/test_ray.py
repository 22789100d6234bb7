"""Ray clusters that anybody can use are not joined: lines "open Ray clusters" and "packages at run time" of the threat model.

Heads that ask for a token are in `tests/jobs/test_submit.py`; here is one that does not.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
import typer
import yaml

from jobs import submit
from pipeline.clusters import refuse_open_cluster, refuse_open_nodes
from pipeline.config import from_dict
from pipeline.errors import ConfigError
from tests.emulators.servers import free_port
from tests.jobs.conftest import ROOT
from tests.jobs.ray_heads import running_head

ELSEWHERE = [
    "203.0.113.8:6379", "ray://head:10001", "http://head.example:8265", "https://head/", "head:6379", "[2001:db8::1]:6379",
    "0.0.0.0:6379", "http://203.0.113.5:8265", "ray://127.0.0.1.example:10001", "http://localhost.example:8265", "%%%", "//", "",
    "http://127.0.0.1@head:8265", "http://[::ffff:203.0.113.8]:8265", "169.254.1.1:6379", "http://[broken",
]  # fmt: skip
HERE = [
    "127.0.0.1:6379", "localhost:6379", "ray://127.0.0.1:10001", "http://localhost:8265", "http://[::1]:8265", "127.8.8.8:1",
    "auto", "local", "LOCALHOST:6379",
]  # fmt: skip


@pytest.mark.parametrize("mode", [None, "", "disabled", "tokens", "k8s"])
@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_cluster_elsewhere_wants_a_token(monkeypatch: pytest.MonkeyPatch, address: str, mode: str | None) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS: .*can run code there.*RAY_AUTH_MODE=token") as refused:
        refuse_open_cluster(address, "RAY_ADDRESS")
    assert refused.value.exit_code == 2
    assert "a" * 32 not in str(refused.value)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_with_a_token_it_may_be_joined(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    refuse_open_cluster(address, "RAY_ADDRESS")


@pytest.mark.parametrize("address", HERE)
def test_one_on_this_machine_alone_needs_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    refuse_open_cluster(address, "RAY_ADDRESS")


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_cluster_found_here_may_not_reach_further_without(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    own = next(a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    refuse_open_nodes(["127.0.0.1", own], "RAY_ADDRESS")
    refuse_open_cluster(f"{own}:6379", "RAY_ADDRESS")
    if mode == "token":
        refuse_open_nodes(["127.0.0.1", "203.0.113.9"], "RAY_ADDRESS")
    else:
        with pytest.raises(ConfigError, match="reaches beyond this machine"):
            refuse_open_nodes(["127.0.0.1", "203.0.113.9"], "RAY_ADDRESS")


JOB = {
    "input": {"path": "/data/in"},
    "tasks": {"vector": {"head": "embedding", "model": "someone/model"}},
    "output": {"path": "/data/out"},
}


def test_submit_refuses_before_it_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at this address: an attempt would take long and end otherwise."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    started = time.monotonic()
    with pytest.raises(ConfigError, match="--address: the cluster reaches beyond this machine"):
        submit.command(str(tmp_path / "job.yaml"), address="http://203.0.113.1:8265")
    assert time.monotonic() - started < 5


class _Answer(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        assert "authorization" not in {name.lower() for name in self.headers}
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(("code", "refused"), [(200, True), (500, True), (404, True), (401, False), (403, False)])
def test_a_job_server_that_asks_nobody_is_refused(code: int, refused: bool) -> None:
    """A token in our environment does not make the cluster ask for it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"code": code}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        if refused:
            with pytest.raises(ConfigError, match="--address: the job server answers without a token"):
                submit.refuse_unguarded(address)
        else:
            submit.refuse_unguarded(address)
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_submitted_is_the_code_and_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary")
    environment = submit.environment(str(tmp_path))
    assert set(environment) == {"working_dir", "env_vars"}
    assert environment["working_dir"] == str(tmp_path), "a folder of this machine, no address"
    assert "canary" not in json.dumps(environment)
    submit._bundle(tmp_path, from_dict(JOB).to_dict())
    assert {path.name for path in tmp_path.iterdir()} == {"jobs", "pipeline", "operators", "job.yaml"}


@pytest.fixture(scope="module")
def open_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head without authentication on the loopback interface; its address."""
    port = free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    env.pop("RAY_ADDRESS", None)
    options = {"num_cpus": 1, "include_dashboard": "false", "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
    with running_head(tmp_path_factory.mktemp("head") / "log", env, port, port=port, **options):
        yield f"127.0.0.1:{port}"


JOIN = """
from pipeline.engines import ray
from pipeline.errors import TidemillError
try:
    print("joined", ray.devices()["cpu"])
except TidemillError as error:
    print("refused", error.exit_code, error)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_an_open_head_is_joined_on_loopback_and_nowhere_else(open_head: str) -> None:
    def join(address: str) -> str:
        env = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", JOIN], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert join(open_head) == "joined 1\n"
    elsewhere = f"{socket.gethostname()}:{open_head.rpartition(':')[2]}"
    assert join(elsewhere).startswith("refused 2 RAY_ADDRESS: the cluster reaches beyond this machine")


def test_the_command_line_has_no_way_around() -> None:
    """No option of run or submit names packages, a working directory or an authentication mode."""
    from jobs.__main__ import app

    command = typer.main.get_command(app)
    options = {o for name in ("run", "submit") for p in command.commands[name].params for o in p.opts}  # type: ignore[attr-defined]
    assert options & {"--address", "--date"}
    assert not [o for o in options if any(word in o for word in ("pip", "env", "working", "auth", "token", "trust", "pickle"))]
