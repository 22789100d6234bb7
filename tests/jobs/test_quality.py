"""Nights of a classification job: a shifted one is held, accepted without encoding, and the next is calm."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import report as report_command
from jobs import run as run_command
from jobs.console import out
from pipeline import open_output
from pipeline.config import from_dict
from pipeline.errors import Held
from pipeline.flow import run
from pipeline.holding import accept, read_findings
from pipeline.ledger.store import open_store
from pipeline.reporting import table_report
from tests.tiny import WORDS, tiny_task

ROWS = 120
Night = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task(tmp_path_factory.mktemp("model"), "SequenceClassification", num_labels=3, id2label=dict(enumerate("abc")))


@pytest.fixture
def night(tmp_path: Path, model: Path) -> Night:
    """Adds a shard of documents of about so many words, and runs the job; keyword arguments are `quality`'s."""

    def work(name: str | None, words: int = 6, *, task: dict[str, Any] | None = None, **quality: Any) -> dict[str, Any]:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        if name:
            rng = random.Random(name)
            texts = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(words, 2 * words))) for _ in range(ROWS)]
            pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
        return run(
            from_dict(
                {
                    "input": {"path": str(folder)},
                    "tasks": {"mood": {"head": "sequence_classification", "model": str(model), **(task or {})}},
                    "output": {"path": str(tmp_path / "out")},
                    "quality": {"drift": "hold", "min_documents": 100, **quality},
                    "runtime": {"engine": "local", "device": "cpu"},
                }
            )
        )

    return work


def shown(what: Any, capsys: pytest.CaptureFixture[str]) -> str:
    out.print(what, width=400)
    return capsys.readouterr().out


def test_a_shifted_night_is_held_until_it_is_accepted(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = night("a")
    assert first["drift"]["why"] == "the table has no earlier version"
    mood = first["quality"]["tasks"]["mood"]
    labels = [m["label"] for m in open_output(str(tmp_path / "out")).to_table()["mood"].to_pylist()]
    assert mood["labels"] == {label: labels.count(label) for label in set(labels)}
    assert not [name for name in {**first["statistics"], **first["books"]["statistics"]} if "quality" in name]
    assert night("b")["drift"]["verdict"] == "calm"

    with pytest.raises(Held) as held:
        night("c", words=40)
    assert held.value.exit_code == 4
    assert "length drifted, PSI " in str(held.value)
    store = open_store(str(tmp_path / "out"))
    found = read_findings(store, held.value.run_id)
    assert found is not None
    assert found["findings"]["drift"]["verdict"] == "drift"
    assert table_report(str(tmp_path / "out"), {})["version"] == 2  # nothing was published
    files = sorted((tmp_path / "out" / "data").rglob("*"))

    with pytest.raises(Held, match="length drifted"):
        night(None)  # the same again: nothing is encoded
    assert sorted((tmp_path / "out" / "data").rglob("*")) == files

    commit = accept(str(tmp_path / "out"), held.value.run_id, {})
    assert (commit.version, commit.totals["rows_out"]) == (3, 3 * ROWS)
    assert sorted((tmp_path / "out" / "data").rglob("*")) == files
    again = night(None)
    assert (again["encoded"], again["drift"]["why"]) == (0, "no piece is new")
    assert night("d", words=40)["drift"]["verdict"] == "calm"  # as the accepted one
    assert night("e")["drift"]["verdict"] == "calm"  # as those before

    accepted = table_report(str(tmp_path / "out"), {}, 3)
    assert accepted["drift"]["verdict"] == "drift"
    text = shown(report_command.show("out", accepted), capsys)
    assert "and accepted: " in text
    assert "PSI" in text
    newest = table_report(str(tmp_path / "out"), {})
    assert newest["quality"]["documents"] == 5 * ROWS
    assert newest["run"]["encoded"] == 1
    assert "task mood" in shown(report_command.show("out", newest), capsys)


def test_warn_publishes_and_says_so_and_off_says_nothing(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    night("a")
    warned = night("b", words=40, drift="warn")
    assert warned["published"]
    assert {f["statistic"] for f in warned["drift"]["findings"]} >= {"length"}
    assert "length drifted" in shown(run_command.summary(warned), capsys)
    quiet = night("c", words=90, drift=False)  # what YAML makes of off
    assert (quiet["published"], quiet["drift"]["verdict"]) == (True, "off")
    assert "drift" not in shown(run_command.summary(quiet), capsys)
    few = night("d", words=90, min_documents=1000)
    assert few["published"]
    assert "fewer than quality.min_documents" in few["drift"]["why"]


def test_another_model_is_compared_with_the_one_before(night: Night, tmp_path: Path) -> None:
    night("a")
    same = night(None, task={"aggregate": "max"})  # a new generation, of short documents
    assert (same["version"], same["drift"]["verdict"], same["drift"]["documents"]) == (2, "calm", ROWS)
    other = tiny_task(tmp_path / "other", "SequenceClassification", num_labels=3, id2label=dict(enumerate("abc")), seed=7)
    with pytest.raises(Held, match="task mood: "):
        night(None, task={"model": str(other)})
    renamed = tiny_task(tmp_path / "xyz", "SequenceClassification", num_labels=3, id2label=dict(enumerate("xyz")), seed=7)
    found = night(None, task={"model": str(renamed)})["drift"]
    assert (found["verdict"], found["skipped"]) == ("calm", {"mood": "no label is as before"})
