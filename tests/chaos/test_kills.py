"""Real kills: of the driver at a random moment while actors are killed too, of a whole node; and jobs that run twice at once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.config import load
from tests.chaos.jobs_fixtures import assert_same, environment, kill, never_began, records, start, wait_for_records
from tests.chaos.profile import scaled, tally
from tests.jobs.conftest import write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Job = Callable[..., Path]
SHARDS = 24


def _calm(config: Path, folder: Path) -> dict[str, Any]:
    """The same job without any fault."""
    return flow.run(load(config, [f"output.path={folder}", "runtime.engine=local"]))


@pytest.mark.parametrize("seed", range(scaled(1, 10)))
def test_driver_and_actors_are_killed_and_the_table_is_that_of_a_calm_run(tmp_path: Path, job: Job, seed: int) -> None:
    rows = write_corpus(tmp_path / "in", shards=SHARDS, rows=60)
    config, out, log = job(runtime={"engine": "ray"}), tmp_path / "out", tmp_path / "log"
    calm = _calm(config, tmp_path / "calm")
    env = environment("kill:0.04", log)
    drivers, runs = 0, 0
    process = start(config, env=env)
    if wait_for_records(process, out, random.Random(seed).randrange(SHARDS)):
        kill(process)
        drivers += 1
    else:
        process.communicate()
    reports = []
    while not reports:
        runs += 1
        recorded = records(out)
        process = start(config, env=env)
        stdout, stderr = process.communicate(timeout=240)
        # 3: an actor died more often than it may.
        assert process.returncode in (0, 3) or never_began(stderr), stderr[-3000:]
        assert runs < 5, stderr[-3000:]
        if process.returncode == 0:
            reports.append(json.loads(stdout))
            assert reports[0]["reused"] == recorded or recorded == reports[0]["pieces"]
    actors = len(list(log.glob("kill-*")))
    assert list(log.glob("again-*")) == []  # a piece that was written although it had a record
    assert reports[0]["books"]["rows_out"] == rows
    for name in ("rows_in", "rows_out", "quarantined", "filtered", "pieces"):
        assert reports[0]["books"][name] == calm["books"][name]
    assert_same(out, tmp_path / "calm")
    counts = {"driver_kills": drivers, "actor_kills": actors, "seeds": 1, "rows_lost": 0, "rows_doubled": 0, "encoded_twice": 0}
    tally("kills", f"seed {seed}", counts)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster whose head has no CPUs; raylets that die are missed soon."""
    import ray
    from ray.cluster_utils import Cluster

    for name, value in {
        "RAY_AUTH_MODE": "disabled",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
        "RAY_health_check_initial_delay_ms": "0",
    }.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150_000_000})
    yield made
    made.shutdown()
    ray.shutdown()


@pytest.mark.skipif(not scaled(0, 1), reason="a minute and more of two nodes: CHAOS=long")
def test_a_node_that_dies_costs_its_pieces_at_most(tmp_path: Path, job: Job, cluster: Any) -> None:
    rows = write_corpus(tmp_path / "in", shards=SHARDS, rows=60)
    config, out = job(runtime={"engine": "ray"}), tmp_path / "out"
    calm = _calm(config, tmp_path / "calm")
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=150_000_000) for _ in range(2)]
    env = environment("slow:0.3", RAY_ADDRESS=cluster.address)
    process = start(config, "runtime.workers=2", env=env)
    try:
        assert wait_for_records(process, out, 4), process.communicate()[1][-3000:]
        cluster.remove_node(nodes[0], allow_graceful=False)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=120)
        seconds = time.monotonic() - began
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode in (0, 3), stderr[-3000:]
    assert seconds < 90
    done = json.loads(stdout) if process.returncode == 0 else _calm(config, out)
    assert done["books"]["rows_out"] == rows == calm["books"]["rows_out"]
    assert_same(out, tmp_path / "calm")
    tally("kills", "raylet", {"raylet_kills": 1, "rows_lost": 0, "rows_doubled": 0})


def test_two_runs_of_one_config_at_once_make_one_result(tmp_path: Path, job: Job) -> None:
    """As two submissions of a night with different ids do; with the same id Ray and `tidemill submit` run it once."""
    rows = write_corpus(tmp_path / "in", shards=12, rows=60)
    config, out = job(), tmp_path / "out"
    _calm(config, tmp_path / "calm")
    processes = [start(config, env=environment("slow:0.1")) for _ in range(2)]
    reports = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr[-3000:]
        reports.append(json.loads(stdout))
    assert [r["books"]["rows_out"] for r in reports] == [rows, rows]
    assert len({(r["generation"], r["pieces"]) for r in reports}) == 1
    assert [r["published"] for r in reports].count(True) == 1
    assert sum(r["encoded"] for r in reports) == records(out) == reports[0]["pieces"]
    assert_same(out, tmp_path / "calm")
    tally("kills", "two at once", {"duplicate_runs": 1, "rows_lost": 0, "rows_doubled": 0})
