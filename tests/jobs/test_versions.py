"""`tidemill history`, `diff` and `rollback` on tables of real jobs, and what the next night makes of a rollback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from pipeline import open_output
from pipeline.config import Config, from_dict
from pipeline.errors import ConfigError
from pipeline.estimate import estimate
from pipeline.flow import run
from pipeline.planning import make_plan
from tests.jobs.conftest import text
from tests.tiny import tiny_sentence_transformer, tiny_task

Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Embedding models and classifiers, two of each, which differ in their weights."""
    folder = tmp_path_factory.mktemp("models")
    made = {f"vector{n}": tiny_sentence_transformer(folder / f"v{n}", max_seq_length=32, seed=n) for n in (0, 1)}
    labels = {"num_labels": 2, "id2label": {0: "sea", 1: "land"}}
    return made | {
        f"label{n}": tiny_task(folder / f"l{n}", "SequenceClassification", max_positions=32, seed=n, **labels) for n in (0, 1)
    }


@pytest.fixture
def config(tmp_path: Path, models: dict[str, Path]) -> Callable[..., Config]:
    """A job with a vector and a label; `model`: which of the two."""

    def make(output: str = "out", model: int = 0, **runtime: Any) -> Config:
        return from_dict(
            {
                "input": {"path": str(tmp_path / "in"), "keep": ["n"]},
                "segments": {"overlap": 6},
                "tasks": {
                    "vector": {"head": "embedding", "model": str(models[f"vector{model}"])},
                    "label": {"head": "sequence_classification", "model": str(models[f"label{model}"])},
                },
                "output": {"path": str(tmp_path / output)},
                "runtime": {"engine": "local", "device": "cpu", **runtime},
            }
        )

    return make


@pytest.fixture
def tidemill() -> Command:
    """Runs a command in this process and returns its JSON; without --json also checks that it says something."""

    def command(*arguments: object) -> dict[str, Any]:
        ended = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
        assert ended.exit_code == 0
        return json.loads(ended.stdout)  # type: ignore[no-any-return]

    return command


def _write(folder: Path, name: str, texts: list[str]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), folder / "in" / name)


def _rows(table: pa.Table) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["_shard"], row["_row"]): row for row in table.to_pylist()}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """But for rounding: a document in another pack comes out a few bits apart."""
    numbers = [np.array([*row["vector"], *row["label"]["scores"], row["label"]["score"]]) for row in (a, b)]
    plain = [{**row, "vector": None, "label": row["label"]["label"]} for row in (a, b)]
    return plain[0] == plain[1] and np.allclose(*numbers, rtol=1e-5, atol=1e-5)


def _expected(path: Path, a: int, b: int) -> dict[str, int]:
    """Rows added, removed, changed and the same, by comparing two tables in Python."""
    before, after = (_rows(open_output(str(path), version=v).to_table()) for v in (a, b))
    common = before.keys() & after.keys()
    changed = sum(not _same(before[key], after[key]) for key in common)
    return {
        "before": len(before),
        "after": len(after),
        "added": len(after) - len(common),
        "removed": len(before) - len(common),
        "changed": changed,
        "same": len(common) - changed,
    }


def test_a_table_over_four_nights(tmp_path: Path, config: Callable[..., Config], tidemill: Command) -> None:
    for n in range(4):
        _write(tmp_path, f"{n}.parquet", [text(10 * n + r, 5 + 3 * r) for r in range(12)])
    out = tmp_path / "out"
    assert run(config())["version"] == 1
    texts = [text(10 + r, 5 + 3 * r) for r in range(12)]
    _write(tmp_path, "1.parquet", [*texts[:4], "another king", *texts[5:10]])  # one row other, two less
    _write(tmp_path, "4.parquet", ["the sea"])
    assert run(config())["encoded"] == 2

    found = tidemill("diff", out, 1, 2)
    assert (
        found["rows"] == _expected(out, 1, 2) == {"before": 48, "after": 47, "added": 1, "removed": 2, "changed": 1, "same": 45}
    )
    assert found["shards"] == {"added": 1, "removed": 0, "common": 4}
    assert tidemill("diff", out, 2, 1)["rows"] == _expected(out, 2, 1)
    assert tidemill("diff", out, 2, 2)["rows"] == {"before": 47, "after": 47, "added": 0, "removed": 0, "changed": 0, "same": 47}

    planned = estimate(make_plan(config(model=1, price_per_hour=36.0)))
    assert any("all 47 rows are encoded again" in note for note in planned["notes"])
    assert planned["cost"]["rows"] == 47
    rate = planned["cost"]["rate_tokens_per_second"]
    assert planned["cost"]["hours"] == pytest.approx(planned["estimate"]["tokens_to_do"] / rate / 3600, abs=1e-4)
    assert planned["cost"]["price"] == pytest.approx(36 * planned["estimate"]["tokens_to_do"] / rate / 3600, abs=1e-4)
    switched = run(config(model=1))
    assert planned["cost"]["tokens"] == switched["tokens"]
    assert 0.7 < planned["cost"]["written_bytes"] / switched["books"]["bytes"] < 1.4
    assert (switched["version"], switched["encoded"]) == (3, 5)

    found = tidemill("diff", out, 2, 3)
    assert found["rows"] == _expected(out, 2, 3)
    assert found["rows"]["changed"] == 47
    before, after = (_rows(open_output(str(out), version=v).to_table()) for v in (2, 3))
    cosines = [float(np.dot(before[key]["vector"], after[key]["vector"])) for key in before]  # both of length one
    assert found["vectors"]["vector"]["rows"] == 47
    assert found["vectors"]["vector"]["mean_cosine"] == pytest.approx(np.mean(cosines), abs=2e-6)
    assert found["vectors"]["vector"]["min_cosine"] == pytest.approx(min(cosines), abs=2e-6)
    moved = [(before[key]["label"]["label"], after[key]["label"]["label"]) for key in before]
    assert found["labels"]["label"]["shifted"] == sum(a != b for a, b in moved)
    assert {(s["before"], s["after"]): s["rows"] for s in found["labels"]["label"]["shifts"]} == {
        pair: moved.count(pair) for pair in moved if pair[0] != pair[1]
    }

    back = tidemill("rollback", out, "--to", 1)
    assert back == {"version": 4, "generation": back["generation"], "restores": 1, "published": True}
    assert open_output(str(out)).to_table().equals(open_output(str(out), version=1).to_table())
    assert tidemill("rollback", out, "--to", 1)["published"] is False
    versions = tidemill("history", out)["versions"]
    assert [(v["version"], v["kind"], v["restores"], v["rows_out"]) for v in versions] == [
        (1, "first", None, 48),
        (2, "append", None, 47),
        (3, "switch", None, 47),
        (4, "rollback", 1, 48),
    ]
    assert (versions[1]["added"], versions[1]["changed"], versions[1]["removed"]) == (["4.parquet"], ["1.parquet"], [])
    assert [v["version"] for v in tidemill("history", out, "--last", 2)["versions"]] == [3, 4]


def test_the_night_after_a_rollback_encodes_nothing_and_publishes_the_input(
    tmp_path: Path, config: Callable[..., Config], tidemill: Command
) -> None:
    out = tmp_path / "out"
    _write(tmp_path, "a.parquet", [text(n, 9) for n in range(5)])
    run(config())
    _write(tmp_path, "a.parquet", [text(n, 9) for n in range(7)])
    run(config())
    tidemill("rollback", out, "--to", 1)
    plan = make_plan(config())
    assert plan.todos == []
    assert any("version 3 is a rollback to version 1" in note for note in estimate(plan)["notes"])
    again = run(config())
    assert (again["version"], again["encoded"], again["books"]["rows_out"]) == (4, 0, 7)
    assert not any("rollback" in note for note in estimate(make_plan(config()))["notes"])

    switched = run(config(model=1))
    assert (switched["version"], switched["encoded"]) == (5, 1)
    tidemill("rollback", out, "--to", 4)
    assert any("published without encoding" in note for note in estimate(make_plan(config(model=1)))["notes"])
    assert run(config())["published"] is False  # the old config goes on where it was
    once_more = run(config(model=1))
    assert (once_more["version"], once_more["encoded"], once_more["generation"]) == (7, 0, switched["generation"])


def test_jsonl_rows_that_move_are_matched_by_their_place(
    tmp_path: Path, config: Callable[..., Config], tidemill: Command
) -> None:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": text(n, 8 + n % 5), "n": n}) + "\n" for n in range(40)]
    (tmp_path / "in" / "a.jsonl").write_text("".join(lines))
    run(config())
    (tmp_path / "in" / "a.jsonl").write_text("".join([*lines[:30], lines[31], *lines[32:], lines[0]]))
    run(config())
    assert tidemill("diff", tmp_path / "out", 1, 2)["rows"] == _expected(tmp_path / "out", 1, 2)


def test_commands_speak_to_people_too(tmp_path: Path, config: Callable[..., Config]) -> None:
    _write(tmp_path, "a.parquet", ["the king"])
    run(config())
    run(config(model=1))
    shown = {}
    for arguments in (["history"], ["diff", "1", "2"], ["rollback", "--to", "1"]):
        ended = CliRunner().invoke(app, [arguments[0], str(tmp_path / "out"), *arguments[1:]], catch_exceptions=False)
        assert ended.exit_code == 0
        shown[arguments[0]] = ended.stdout
    assert "switch" in shown["history"]
    assert "mean cosine" in shown["diff"]
    assert "is version 1 again" in shown["rollback"]


def test_versions_that_are_not_there_are_refused(tmp_path: Path, config: Callable[..., Config]) -> None:
    _write(tmp_path, "a.parquet", ["the king"])
    run(config())
    for arguments in (["diff", "1", "2"], ["rollback", "--to", "2"]):
        with pytest.raises(ConfigError, match="no version 2"):
            CliRunner().invoke(app, [arguments[0], str(tmp_path / "out"), *arguments[1:]], catch_exceptions=False)
