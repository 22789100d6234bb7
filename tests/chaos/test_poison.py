"""Poison costs one row: words that kill an encoder, in real processes of both engines. `CHAOS=long` adds the whole matrix.

What was fed and found goes to build/trust/poison.json.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import operators.encoders
from pipeline import open_output
from pipeline.config import load
from pipeline.ledger.attempts import begin
from pipeline.planning import make_plan
from tests.chaos import profile
from tests.poison.encoders.poison import WORDS
from tests.tiny import tiny_sentence_transformer

ROOT = Path(__file__).resolve().parents[2]
POISON = ROOT / "tests" / "poison"
REASONS = {
    "abort": "worker_crash", "segfault": "worker_crash", "loop": "timeout", "held": "timeout", "memory": "oom",
    "exception": "task_failed:vector", "nan": "task_failed:vector",
}  # fmt: skip
TOLERANCE = 2e-6
PROSE = ["garden", "silver", "copper", "thunder", "meadow", "lantern", "harbor", "winter", "pepper", "candle"]
LONG = bool(profile.scaled(0, 1))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedding model with windows of 32 tokens."""
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"), max_seq_length=32)


@dataclass(frozen=True)
class Job:
    """A corpus and the job over it. `calm` is the same by backend torch, for which nothing is poison."""

    folder: Path
    config: Path
    rows: int

    def run(self, *overrides: str, env: dict[str, str] | None = None, code: int | None = 0) -> dict[str, Any]:
        """The report of one process. `code`: its exit code, None for any."""
        path = os.pathsep.join([str(POISON / "site"), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "jobs", "run", str(self.config), *overrides, "--json"],
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", **(env or {})},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stderr[-4000:]
        assert not any(word in done.stderr for word in PROSE)
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return {**answer, "code": done.returncode, "stderr": done.stderr}

    def suspect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every piece was begun twice already."""
        monkeypatch.setattr(operators.encoders, "__path__", [*operators.encoders.__path__, str(POISON / "encoders")])
        plan = make_plan(load(self.config))
        for todo in plan.todos:
            for _ in range(2):
                begin(plan.recipe.store, plan.generation, todo.span.piece_id(0), "earlier")

    def entries(self) -> list[dict[str, Any]]:
        """The quarantine."""
        out = self.folder / "out" / "quarantine"
        return [row for file in sorted(out.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]

    def check(self, bad: dict[str, tuple[int, str]]) -> None:
        """All rows are out but `bad` (shard -> row, reason), which are in quarantine; the values are those of a calm run."""
        assert {(e["_shard"], e["_row"], e["reason"]) for e in self.entries()} == {(s, *r) for s, r in bad.items()}
        self.run("runtime.engine=local", "runtime.backend=torch", f"output.path={self.folder / 'calm'}")
        vectors, calm = self._vectors("out"), self._vectors("calm")
        assert len(calm) == self.rows
        assert calm.keys() - vectors.keys() == {(shard, row) for shard, (row, _) in bad.items()}
        assert max(float(np.abs(calm[key] - vector).max()) for key, vector in vectors.items()) <= TOLERANCE

    def _vectors(self, name: str) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
        table = open_output(str(self.folder / name)).to_table(columns=["_shard", "_row", "vector"])
        keys = list(zip(table["_shard"].to_pylist(), table["_row"].to_pylist(), strict=True))
        assert len(keys) == len(set(keys))
        return dict(zip(keys, np.array(table["vector"].to_pylist()), strict=True))


def make(folder: Path, model: Path, shards: Sequence[tuple[str, int, dict[int, str]]], **runtime: Any) -> Job:
    """A job over Parquet shards of (name, rows, row -> kind of poison)."""
    (folder / "in").mkdir(parents=True)
    rng = random.Random(5)
    for name, rows, poison in shards:
        texts = [" ".join(rng.choices(PROSE, k=rng.randint(1, 12))) for _ in range(rows)]
        for row, kind in poison.items():
            texts[row] += f" {WORDS[kind]}"
        pq.write_table(pa.table({"text": texts}), folder / "in" / name)
    config = {
        "input": {"path": str(folder / "in")},
        "tasks": {"vector": {"head": "embedding", "model": str(model)}},
        "output": {"path": str(folder / "out")},
        "runtime": {"engine": "local", "device": "cpu", "backend": "poison", **runtime},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    return Job(folder, folder / "job.yaml", sum(rows for _, rows, _ in shards))


def tally(test: str, rows: int, isolated: int) -> None:
    """To be called once all else of a test holds: then no row was lost or doubled."""
    counts = {"rows_fed": rows, "poison_rows_isolated": isolated, "rows_lost": 0, "rows_doubled": 0}
    profile.tally("poison", test, counts)


def test_every_kind_of_poison_is_found_with_its_reason(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [kind for kind in REASONS if kind not in ("held", "segfault")]
    # Time enough to run out of memory on a busy machine: what loops waits for it twice.
    job = make(
        tmp_path, model, [*((f"{kind}.parquet", 12, {0: kind}) for kind in kinds), ("good.parquet", 12, {})],
        piece_timeout=20, worker_memory="1GiB",
    )  # fmt: skip
    job.suspect(monkeypatch)
    done = job.run()
    job.check({f"{kind}.parquet": (0, REASONS[kind]) for kind in kinds})
    assert done["isolated"] == {"oom": 1, "task_failed:vector": 2, "timeout": 1, "worker_crash": 1}
    assert done["taken_apart"] == done["begun_again"] == len(kinds) + 1
    tally("kinds", job.rows, len(kinds))


def test_preparing_and_reading_may_be_poisoned_too(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [("a.parquet", 12, {0: "abort"}), ("b.parquet", 12, {3: "exception"}), ("poison.parquet", 12, {})]
    job = make(tmp_path, model, [*shards, ("good.parquet", 12, {})])
    job.suspect(monkeypatch)
    done = job.run(env={"POISON_STAGE": "prepare,read"})
    found = {(e["_shard"], e["_row"], e["reason"]) for e in job.entries()}
    assert found == {
        ("a.parquet", 0, "worker_crash"), ("b.parquet", 3, "task_failed:vector"), ("poison.parquet", None, "unreadable"),
    }  # fmt: skip
    assert (done["books"]["rows_in"], done["books"]["rows_out"]) == (37, 34)


def test_an_exception_outside_of_the_encoder_costs_its_row_at_once(tmp_path: Path, model: Path) -> None:
    job = make(tmp_path, model, [("a.parquet", 12, {5: "exception"})])
    done = job.run(env={"POISON_STAGE": "prepare"})
    job.check({"a.parquet": (5, "task_failed:vector")})
    assert (done["taken_apart"], done["begun_again"]) == (1, 0)


def test_a_model_that_fails_whatever_it_is_given_condemns_no_row(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path, model, [("a.parquet", 12, {}), ("b.parquet", 12, {})])
    job.suspect(monkeypatch)
    done = job.run(env={"POISON_STAGE": "always"}, code=3)
    assert "a document without text fails as well" in done["error"]
    assert job.entries() == []


def test_the_same_command_goes_on_after_the_process_died(tmp_path: Path, model: Path) -> None:
    job = make(tmp_path, model, [("a.parquet", 12, {0: "segfault"}), ("b.parquet", 12, {})])
    codes = [job.run(code=None)["code"] for _ in range(3)]
    assert codes == [-11, -11, 0]
    job.check({"a.parquet": (0, "worker_crash")})
    tally("rerun", job.rows, 1)


def headline(folder: Path, model: Path, kind: str, engine: str) -> None:
    """1 poison in 10,000 rows: 9,999 out, 1 in quarantine, at most 3 restarts."""
    shards = [(f"{s}.parquet", 2000, {777: kind} if s == 1 else {}) for s in range(5)]
    job = make(folder, model, shards, engine=engine, piece_timeout=20, worker_memory="2GiB")
    runs = 0
    while True:
        done = job.run(code=None)
        runs += 1
        if done["code"] == 0:
            break
        assert engine == "local"
        assert runs < 3, done["stderr"][-3000:]
    assert (done["books"]["rows_in"], done["books"]["rows_out"]) == (10_000, 9_999)
    assert done["books"]["quarantined"] == {REASONS[kind]: 1}
    attempts = [path.name for path in (folder / "out" / "_attempts").rglob("*.json")]
    assert all(int(name.split("-")[-1][:-5]) <= 3 for name in attempts)  # so nothing was begun more than 4 times
    job.check({"1.parquet": (777, REASONS[kind])})
    tally(f"one-in-10000-{kind}-{engine}", job.rows, 1)


@pytest.mark.ray
def test_one_poison_in_ten_thousand_rows(tmp_path: Path, model: Path) -> None:
    headline(tmp_path, model, "abort", "ray")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="CHAOS=long runs the whole matrix")
@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("kind", list(REASONS))
def test_one_poison_of_each_kind_in_ten_thousand_rows(tmp_path: Path, model: Path, kind: str, engine: str) -> None:
    headline(tmp_path, model, kind, engine)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="CHAOS=long runs the whole matrix")
@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_stages_of_their_own_are_guarded_each(tmp_path: Path, model: Path, stage: str) -> None:
    shards = [(f"{s}.parquet", 12, {0: "abort"} if s == 1 else {}) for s in range(3)]
    job = make(tmp_path, model, shards, engine="ray", stages="split", workers=1)
    done = job.run(env={"POISON_STAGE": stage})
    assert done["books"]["quarantined"] == {"worker_crash": 1}
    job.check({"1.parquet": (0, "worker_crash")})
    tally(f"split-{stage}", job.rows, 1)
