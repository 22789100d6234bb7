"""Whole jobs with a table format that follows: after a commit, after a kill, after a held run; what is refused at planning."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import open_output
from pipeline.config import load
from pipeline.errors import ConfigError, Held
from pipeline.estimate import estimate
from pipeline.flow import run
from pipeline.following import find_format
from pipeline.formats._place import locate
from pipeline.holding import accept
from pipeline.ledger.store import open_store
from pipeline.planning import make_plan
from tests.format_cases import FOLLOWERS, FORMATS, ordered
from tests.jobs.conftest import write_corpus

Job = Callable[..., Path]


def read(name: str, path: Path, own: int) -> list[dict[str, Any]]:
    """The rows that the format holds."""
    return ordered(find_format(name).read(locate(open_store(str(path)), {}), own).to_table())


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_format_follows_every_night(name: str, tmp_path: Path, job: Job) -> None:
    out = tmp_path / "out"
    write_corpus(tmp_path / "in", shards=1)
    plain = load(job())
    done = run(plain)
    assert (done["format"], done["format_version"]) == ("parquet", 1)
    assert not {"_delta_log", "_lance"} & {path.name for path in out.iterdir()}

    config = load(job(output={"path": str(out), "format": name}))
    taken = run(config)  # a table that was there before; nothing is encoded, and no version published
    assert (taken["published"], taken["encoded"], taken["version"], taken["format"]) == (False, 0, 1, name)
    assert read(name, out, taken["format_version"]) == ordered(open_output(str(out)).to_table())

    write_corpus(tmp_path / "in", shards=2)
    done = run(config)
    assert done["version"] == 2
    assert done["format_version"] > taken["format_version"]
    assert read(name, out, done["format_version"]) == ordered(open_output(str(out)).to_table())

    # The folder of the format may go at any time: the next night makes it anew from the ledger.
    shutil.rmtree(out / ("_delta_log" if name == "delta" else "_lance"))
    again = run(config)
    assert (again["published"], again["encoded"]) == (False, 0)
    assert read(name, out, again["format_version"]) == ordered(open_output(str(out)).to_table())


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_held_run_is_followed_when_it_is_accepted(name: str, tmp_path: Path, job: Job) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=10)
    strict = {"engine": "local", "device": "cpu", "precision": "bf16", "parity_sample": 10, "parity_similarity": 0.9999999}
    config = load(job(output={"path": str(tmp_path / "out"), "format": name}, runtime=strict))
    with pytest.raises(Held) as held:
        run(config)
    place = locate(open_store(config.output.path), {})
    assert find_format(name).standing(place) is None
    accept(config.output.path, held.value.run_id, {})
    at = find_format(name).standing(place)
    assert at is not None
    assert at.version == 1
    assert read(name, tmp_path / "out", at.own) == ordered(open_output(config.output.path).to_table())


def test_status_says_what_the_format_holds(tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.status import command

    def status(version: int | None = None) -> tuple[Any, Any]:
        command(str(tmp_path / "out"), version=version, json=True)
        books = json.loads(capsys.readouterr().out)
        return books["format"], books["format_version"]

    write_corpus(tmp_path / "in", shards=1, rows=5)
    run(load(job(output={"path": str(tmp_path / "out"), "format": "delta"})))
    assert status() == ("delta", 0)
    write_corpus(tmp_path / "in", shards=2, rows=5)
    run(load(job(output={"path": str(tmp_path / "out"), "format": "delta"})))
    assert status() == ("delta", 1)
    assert status(version=1) == ("delta", None)  # what it holds now is another version
    shutil.rmtree(tmp_path / "out" / "_delta_log")
    assert status() == ("delta", None)


def test_what_a_format_cannot_hold_is_refused_at_planning(tmp_path: Path, job: Job) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=5)
    model = load(job()).tasks["vector"].model
    tasks = {"vector": {"head": "embedding", "model": model, "dtype": "float16"}}
    with pytest.raises(ConfigError, match=r"output\.format: column 'vector': Delta has no halffloat; take dtype") as error:
        run(load(job(tasks=tasks, output={"path": str(tmp_path / "out"), "format": "delta"})))
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    assert run(load(job(tasks=tasks, output={"path": str(tmp_path / "out"), "format": "lance"})))["format_version"] == 1


def test_formats_that_are_none_or_not_installed(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=5)
    output = {"path": str(tmp_path / "out")}
    with pytest.raises(
        ConfigError, match=rf"'detla' is none of the formats; did you mean 'delta'\?; there are: {', '.join(FORMATS)}"
    ):
        load(job(output={**output, "format": "detla"}))
    monkeypatch.delitem(sys.modules, "pipeline.formats.delta", raising=False)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    config = load(job(output={**output, "format": "delta"}))
    with pytest.raises(ConfigError, match=r"pip install 'tidemill\[delta\]'"):
        make_plan(config)
    assert estimate(make_plan(load(job(output=output))))  # Parquet needs none of them


def test_a_table_that_somebody_else_made_is_left_alone(tmp_path: Path, job: Job) -> None:
    import lance
    import pyarrow as pa
    from deltalake import write_deltalake

    write_corpus(tmp_path / "in", shards=1, rows=5)
    write_deltalake(tmp_path / "out", pa.table({"a": [1]}))
    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "out" / "_lance" / "table.lance")
    for name in FOLLOWERS:
        with pytest.raises(ConfigError, match="that tidemill did not make"):
            make_plan(load(job(output={"path": str(tmp_path / "out"), "format": name})))


def test_options_that_a_format_does_not_know_are_refused(tmp_path: Path, job: Job) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=5)
    options = {"endpoint_url": "http://127.0.0.1:1", "requester_pays": True}
    config = load(job(output={"path": "s3://bucket/x", "format": "delta", "storage_options": options}))
    with pytest.raises(ConfigError, match=r"requester_pays: only format parquet knows this option"):
        locate(open_store(config.output.path, options), options)
