"""Heads with second texts, offsets and texts through the Ray engine, in stages of their own, as through the local one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import open_output
from tests.head_cases import CASES, assert_near, case_model
from tests.jobs.conftest import text

pytestmark = pytest.mark.ray
Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


def test_split_stages_on_ray_give_what_the_local_engine_gives(
    tmp_path: Path, job: Job, tidemill: Tidemill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    rows: list[dict[str, Any]] = [
        {
            "doc": f"d{i}",
            "text": text(i, 11 * i),
            "question": "who is the king" if i % 5 else None,
            "choices": ["sea", "a dog"][: i % 3],
        }
        for i in range(20)
    ]
    (tmp_path / "in").mkdir()
    for half in (0, 1):
        pq.write_table(pa.Table.from_pylist(rows[half::2]), tmp_path / "in" / f"part-{half}.parquet")
    models = {
        head: str(case_model(tmp_path / head, head, seed=2))
        for head in ("question_answering", "token_classification", "multiple_choice")
    }
    models["embedding"] = str(case_model(tmp_path / "embedding", "embedding"))
    settings = {head: dict(CASES[head].settings) for head in models}
    settings["question_answering"] = {"question_column": "question"}
    tasks = {head: {"head": head, "model": model, **settings[head]} for head, model in models.items()}
    config = job(input={"keep": []}, tasks=tasks)

    def run(output: Path, *overrides: str) -> tuple[dict[str, Any], pa.Table]:
        done = tidemill("run", config, f"output.path={output}", *overrides, "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout), open_output(str(output)).to_table()

    local, expected = run(tmp_path / "local")
    split, found = run(tmp_path / "ray", "runtime.engine=ray", "runtime.stages=split", "runtime.workers=2")
    assert split["books"]["quarantined"] == local["books"]["quarantined"] == {"bad_value": 9}  # null questions, empty choices
    assert found.schema == expected.schema
    assert "question" not in found.schema.names
    assert_near(found.to_pylist(), expected.to_pylist())
