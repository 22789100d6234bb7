"""Two `tidemill run` processes at once on one table: one result, shared work, and never two generations in one version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import open_output
from pipeline.ledger.books import totals
from pipeline.ledger.publish import head, manifest_records, read_commit
from pipeline.ledger.store import open_store
from tests.conftest import S3
from tests.jobs.conftest import ROOT, write_corpus

SHARDS, ROWS = 48, 60


@pytest.fixture
def table(s3_server: S3) -> tuple[str, dict[str, Any]]:
    """Path and storage options of a table to be; `tests/chaos/test_kills.py` has two runs at once on a local disk."""
    return f"s3://{s3_server.make_bucket()}/out", s3_server.storage_options


def _at_once(*arguments: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Exit codes and reports of runs that are started at the same time."""
    command = [sys.executable, "-m", "jobs", "run", "--json"]
    runs = [
        subprocess.Popen([*command, *given], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for given in arguments
    ]
    outputs = [run.communicate(timeout=240) for run in runs]
    assert {run.returncode for run in runs} <= {0, 5}, [stderr[-2000:] for _, stderr in outputs]
    return [(run.returncode, json.loads(stdout)) for run, (stdout, _) in zip(runs, outputs, strict=True)]


@pytest.mark.slow
def test_two_runs_share_their_work(tmp_path: Path, job: Callable[..., Path], table: tuple[str, dict[str, Any]]) -> None:
    rows = write_corpus(tmp_path / "in", shards=SHARDS, rows=ROWS)
    path, options = table
    config = str(job(output={"path": path, "storage_options": options}))
    runs = _at_once([config], [config])
    assert [code for code, _ in runs] == [0, 0]
    assert sum(report["encoded"] for _, report in runs) == SHARDS  # each piece has one record, of the first who wrote it
    assert {report["pieces"] for _, report in runs} == {SHARDS}

    store = open_store(path, options)
    newest = head(store)
    assert newest is not None
    assert newest.version in (1, 2)
    pieces = {r.piece: r for r in manifest_records(store, newest)}
    assert len(pieces) == SHARDS
    assert totals(pieces.values()).rows_out == rows
    if newest.version == 2:
        assert {r.piece for r in manifest_records(store, read_commit(store, 1))} == set(pieces)
    # Files that no record names are those of a run that came second to a piece.
    written = len(store.list("data"))
    assert SHARDS <= written <= 1.5 * SHARDS, f"{written} files were written for {SHARDS} pieces"
    ids = open_output(path, storage_options=options).to_table(columns=["id"])["id"].to_pylist()
    assert len(ids) == len(set(ids)) == rows


@pytest.mark.slow
def test_two_generations_never_mix(tmp_path: Path, job: Callable[..., Path], table: tuple[str, dict[str, Any]]) -> None:
    rows = write_corpus(tmp_path / "in", shards=SHARDS, rows=ROWS)
    path, options = table
    config = str(job(output={"path": path, "storage_options": options}))
    runs = _at_once([config], [config, "segments.overlap=2"])
    codes = [code for code, _ in runs]
    assert 0 in codes
    store = open_store(path, options)
    newest = head(store)
    assert newest is not None
    assert newest.version == codes.count(0)  # a run that was fenced has published nothing, and the others came in order
    for version in range(1, newest.version + 1):
        commit = read_commit(store, version)
        records = manifest_records(store, commit)
        assert {r.generation for r in records} == {commit.generation}
        assert (len(records), totals(records).rows_out) == (SHARDS, rows)
    fenced = [report for code, report in runs if code == 5]
    assert all(report["exit_code"] == 5 and "was committed by run" in report["error"] for report in fenced)
