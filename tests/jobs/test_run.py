"""`tidemill run` as a process with the local engine: books, reruns, growth, generations, bad input, exit codes."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import flow, open_output
from pipeline.config import load
from pipeline.stages import Outcome
from tests.jobs.conftest import ROOT, text, write_corpus
from tests.jobs.reports import report

Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


def vectors(path: Path, **options: Any) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
    table = open_output(str(path), **options).to_table(columns=["_shard", "_row", "vector"])
    keys = zip(table["_shard"].to_pylist(), table["_row"].to_pylist(), strict=True)
    return dict(zip(keys, np.array(table["vector"].to_pylist()), strict=True))


def test_a_corpus_becomes_a_table_with_closed_books(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in")
    first = report(tidemill("run", job(), "--json"))
    assert (first["version"], first["published"]) == (1, True)
    assert first["encoded"] == first["pieces"]
    assert first["books"]["rows_in"] == first["books"]["rows_out"] == rows

    table = open_output(str(tmp_path / "out")).to_table()
    assert table.num_rows == rows
    assert table.schema.names == ["_shard", "_row", "lang", "id", "n_tokens", "n_segments", "truncated", "vector"]
    assert str(table.schema.field("_shard").type).startswith("dictionary<values=string")
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    assert set(table["lang"].to_pylist()) == {"en", "zh"}
    assert sorted(table["id"].to_pylist()) == sorted(f"d{s}-{r}" for s in range(3) for r in range(40))
    for file in json.loads(tidemill("files", tmp_path / "out", "--json").stdout)["files"]:
        ordinals = pq.read_table(file)["_row"].to_pylist()
        assert ordinals == sorted(ordinals)

    status = report(tidemill("status", tmp_path / "out", "--json"))
    assert {"version", "generation", "rows_in", "rows_out", "quarantined", "filtered", "pieces", "duplicate_ids"} <= set(status)
    assert (status["rows_in"], status["rows_out"], status["quarantined"], status["duplicate_ids"]) == (rows, rows, {}, 0)


def test_a_second_run_encodes_and_publishes_nothing_and_growth_encodes_the_new(
    tmp_path: Path, job: Job, tidemill: Tidemill
) -> None:
    write_corpus(tmp_path / "in", shards=2)
    config = job()
    first = report(tidemill("run", config, "--json"))
    before = vectors(tmp_path / "out")
    again = report(tidemill("run", config, "--json"))
    assert (again["version"], again["published"], again["encoded"]) == (1, False, 0)
    assert again["pieces"] == again["reused"] == first["pieces"]

    write_corpus(tmp_path / "in2", shards=3)
    shutil.copy(tmp_path / "in2" / "part-2.jsonl.gz", tmp_path / "in")
    changed = pq.read_table(tmp_path / "in" / "part-0.parquet").slice(0, 30)
    pq.write_table(changed, tmp_path / "in" / "part-0.parquet")
    grown = report(tidemill("run", config, "--json"))
    assert (grown["version"], grown["encoded"]) == (2, 2)
    assert grown["books"]["rows_in"] == 30 + 40 + 40
    after = vectors(tmp_path / "out")
    unchanged = {k: v for k, v in before.items() if k[0] == "part-1.jsonl"}
    assert len(unchanged) == 40
    assert all(np.array_equal(after[k], v) for k, v in unchanged.items())
    assert len(vectors(tmp_path / "out", version=1)) == 80


@pytest.mark.parametrize(("removed", "left"), [("keep", 80), ("drop", 40)])
def test_shards_that_leave_the_input(tmp_path: Path, job: Job, tidemill: Tidemill, removed: str, left: int) -> None:
    write_corpus(tmp_path / "in", shards=2)
    config = job(output={"removed": removed})
    report(tidemill("run", config, "--json"))
    (tmp_path / "in" / "part-1.jsonl").unlink()
    second = report(tidemill("run", config, "--json"))
    assert second["encoded"] == 0
    assert open_output(str(tmp_path / "out")).count_rows() == left


def test_another_setting_is_another_generation_switched_in_one_step(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in")
    first = report(tidemill("run", job(), "--json"))
    second = report(tidemill("run", job(), "segments.overlap=2", "--json"))
    assert second["generation"] != first["generation"]
    assert (second["version"], second["encoded"], second["books"]["rows_out"]) == (2, second["pieces"], rows)
    same = report(tidemill("run", job(), "segments.overlap=2", "runtime.tokens_per_pack=64", "--json"))
    assert (same["generation"], same["encoded"]) == (second["generation"], 0)


def test_every_bad_row_is_in_quarantine_with_its_reason(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [b'{"text": "good one"}', b'{"text": "broken', b'{"text": null}', b'{"text": 17}', b'{"text": ""}', b"[1, 2]",
             b'{"other": "no text"}', b'{"text": "\xff\xfe"}', b'{"text": "\\ud800"}', b"", b'{"text": "good two"}']  # fmt: skip
    (folder / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    pq.write_table(pa.table({"text": ["fine", None, ""]}), folder / "b.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "empty.parquet")
    whole = folder / "b.parquet"
    (folder / "torn.parquet").write_bytes(whole.read_bytes()[:-20])
    packed = gzip.compress(b'{"text": "in a torn archive"}\n' * 2000)
    (folder / "torn.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    config = job(input={"keep": [], "id": None})
    books = report(tidemill("run", config, "--json"))["books"]
    expected = {"bad_json": 2, "null_text": 3, "not_text": 1, "bad_encoding": 2, "unreadable": 2}
    assert books["quarantined"] == expected
    assert books["rows_out"] == 5
    assert books["rows_in"] == books["rows_out"] + sum(expected.values())
    table = open_output(str(tmp_path / "out")).to_table()
    ids = dict(zip(table["id"].to_pylist(), table["n_tokens"].to_pylist(), strict=True))
    assert ids["b.parquet#2"] == 0
    assert "a.jsonl#0" in ids
    files = tidemill("files", tmp_path / "out", "--quarantine").stdout.split()
    entries = pa.concat_tables(pq.read_table(f) for f in files).to_pylist()
    assert {e["reason"] for e in entries} == set(expected)
    assert {e["_shard"] for e in entries if e["_row"] is None} == {"torn.parquet", "torn.jsonl.gz"}
    assert not any("good" in str(e["detail"]) or "broken" in str(e["detail"]) for e in entries)
    again = report(tidemill("run", config, "--json"))
    assert (again["published"], again["encoded"]) == (False, 0)


def test_a_limit_tries_a_config_and_never_shrinks_a_table(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in")
    config = job()
    few = report(tidemill("run", config, "input.limit=50", "--json"))
    assert few["books"]["rows_in"] == 50
    assert report(tidemill("run", config, "--json"))["books"]["rows_in"] == rows
    assert tidemill("run", config, "input.limit=10", "--json").returncode == 2


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["input.text=body"], "input.text"),
        (["input.keep=[nothing]"], "nothing"),
        (["tasks.vector.model=/nowhere/at/all"], "tasks.vector.model"),
        (["tasks.vector.dim=100000"], "dim"),
        (["tasks.vector.prompt=ends-in-a-word"], "tasks.vector: prompt"),
        (["segments.overlap=29"], "overlap"),
        (["segments.max_tokens=2"], "max_tokens"),
        (["runtime.device=npu"], "runtime.device"),
        (["input.path=/no/such/folder"], "input.path"),
        (["output.path=http://example/x"], "output.path"),
        (["runtime.workerz=2"], "did you mean 'workers'"),
    ],
)
def test_what_can_be_checked_is_checked_before_anything_starts(
    tmp_path: Path, job: Job, tidemill: Tidemill, overrides: list[str], part: str
) -> None:
    write_corpus(tmp_path / "in", shards=1)
    process = tidemill("run", job(runtime={"engine": "ray"}), *overrides, "--json")
    assert process.returncode == 2, process.stderr[-2000:]
    assert part in process.stderr
    assert json.loads(process.stdout)["exit_code"] == 2
    assert not (tmp_path / "out").exists()


def test_order_of_columns_is_a_setting_like_others(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"l": ["x"], "m": ["y"], "text": ["one"]}), folder / "a.parquet")
    report(tidemill("run", job(input={"keep": ["l", "m"], "id": None}), "--json"))
    pq.write_table(pa.table({"l": ["x"], "m": ["y"], "text": ["two"]}), folder / "b.parquet")
    turned = report(tidemill("run", job(input={"keep": ["m", "l"], "id": None}), "--json"))
    assert (turned["version"], turned["encoded"], turned["books"]["rows_out"]) == (2, 2, 2)


def test_columns_that_would_collide_are_refused(tmp_path: Path, job: Job, tidemill: Tidemill, tiny_model: Path) -> None:
    write_corpus(tmp_path / "in", shards=1)
    task = {"head": "embedding", "model": str(tiny_model)}
    config = job(tasks={"b": task, "a": {**task, "segments": {"policy": "truncate"}}, "a_n_tokens": task})
    refused = tidemill("run", config)
    assert refused.returncode == 2
    assert "two columns 'a_n_tokens'" in refused.stderr


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", Path("/proc/nothing/here")):
        refused = tidemill("run", job(), f"output.path={path}", "--json")
        assert refused.returncode == 2, refused.stderr
        assert "output.path" in json.loads(refused.stdout)["error"]


def test_weights_that_are_torn_are_found_before_the_work(tmp_path: Path, job: Job, tidemill: Tidemill, tiny_model: Path) -> None:
    write_corpus(tmp_path / "in", shards=1)
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused = tidemill("run", job(tasks={"vector": {"head": "embedding", "model": str(tmp_path / "model")}}))
    assert refused.returncode == 2
    assert "model.safetensors" in refused.stderr


def test_output_inside_the_input_is_refused(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    assert tidemill("run", job(output={"path": str(tmp_path / "in" / "out")})).returncode == 2


def test_plan_says_what_a_run_would_do_without_doing_it(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in")
    config = job()
    plan = report(tidemill("plan", config, "--json"))
    assert plan["shards"] == 3
    assert plan["spans_to_do"] == plan["spans"]
    assert "vector: fixed_size_list" in " ".join(plan["schema"])
    assert not (tmp_path / "out").exists()
    done = report(tidemill("run", config, "--json"))
    estimate = plan["estimate"]["tokens"]
    assert 0.5 * done["tokens"] < estimate < 2 * done["tokens"]
    after = report(tidemill("plan", config, "segments.overlap=2", "--json"))
    assert any("overlap" in change for change in after["changes"])
    assert any(f"all {rows} rows are encoded again" in note for note in after["notes"])
    held = report(tidemill("plan", config, "--json"))
    assert (held["spans_to_do"], held["rows"]) == (0, f"{rows} recorded")
    assert (held["estimate"]["tokens"], held["estimate"]["tokens_to_do"]) == (done["tokens"], 0)


def test_files_and_status_of_nothing_are_exit_2(tmp_path: Path, tidemill: Tidemill) -> None:
    for command in ("files", "status"):
        assert tidemill(command, tmp_path / "none").returncode == 2


def test_sigterm_ends_with_143_and_the_same_command_goes_on(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=9, rows=400)
    config = job()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "run", config], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not list((tmp_path / "out").glob("_records/*/*.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    recorded = len(list((tmp_path / "out").glob("_records/*/*.json")))
    assert recorded < 9
    done = report(tidemill("run", config, "--json"))
    assert done["reused"] == recorded
    assert done["books"]["rows_out"] == rows


def test_ctrl_c_ends_with_130_and_says_so(tmp_path: Path, job: Job) -> None:
    write_corpus(tmp_path / "in", shards=9, rows=2000)  # enough to be at work still, however late the signal comes
    command = [sys.executable, "-m", "jobs", "run", str(job()), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list((tmp_path / "out").glob("_records/*/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(stdout)["exit_code"] == 130
    assert not (tmp_path / "out" / "_commits").exists()


def test_a_job_servers_address_is_no_cluster_to_join(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    address = {"RAY_ADDRESS": "http://user:hunter2@127.0.0.1:8265"}
    refused = tidemill("run", job(runtime={"engine": "ray"}), env=address)
    assert refused.returncode == 2
    assert "RAY_ADDRESS" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_sigterm_does_not_wait_for_a_large_piece(tmp_path: Path, job: Job) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": [text(i, 150) for i in range(15_000)]}), tmp_path / "in" / "large.parquet")
    config = job(input={"keep": [], "id": None, "piece": "32MiB"})
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "run", config], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"to do" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert not (tmp_path / "out" / "_records").exists()


def test_doctor_checks_storage_and_plan(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    write_corpus(tmp_path / "in", shards=1)
    found = report(tidemill("doctor", job(), "--json"))
    names = {c["name"]: c["ok"] for c in found["checks"]}
    assert found["ok"]
    assert names["storage"] is True
    assert names["plan"] is True
    bad = tidemill("doctor", job(output={"path": str(tmp_path / "out")}), "input.path=/no/such/folder", "--json")
    assert bad.returncode == 1
    assert not json.loads(bad.stdout)["ok"]


def test_duplicate_ids_are_allowed_and_counted_over_the_whole_table(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"doc": ["a", "b", "a", None], "text": ["x"] * 4}), folder / "one.parquet")
    pq.write_table(pa.table({"doc": ["b", "c"], "text": ["y"] * 2}), folder / "two.parquet")
    done = report(tidemill("run", job(input={"keep": []}), "--json"))
    assert done["duplicate_ids"] == 2
    ids = open_output(str(tmp_path / "out")).to_table()["id"].to_pylist()
    assert sorted(ids) == ["a", "a", "b", "b", "c", "one.parquet#3"]


def test_two_tasks_with_other_windows_count_for_themselves(
    tmp_path: Path, job: Job, tidemill: Tidemill, tiny_model: Path
) -> None:
    write_corpus(tmp_path / "in", shards=1)
    task = {"head": "embedding", "model": str(tiny_model)}
    tasks = {
        "vector": task,
        "start": {**task, "segments": {"policy": "truncate"}, "dtype": "float16"},
        "windows": {**task, "aggregate": "none"},
    }
    report(tidemill("run", job(tasks=tasks), "--json"))
    table = open_output(str(tmp_path / "out")).to_table()
    assert {"start_n_tokens", "start_n_segments", "start_truncated"} <= set(table.column_names)
    assert "windows_n_tokens" not in table.column_names
    assert set(table["start_n_segments"].to_pylist()) == {1}
    assert any(table["start_truncated"].to_pylist())
    assert str(table.schema.field("start").type).startswith("fixed_size_list<item: halffloat>")
    lengths = [len(w) for w in table["windows"].to_pylist()]
    assert lengths == table["n_segments"].to_pylist()


def test_policy_error_sets_long_documents_aside(tmp_path: Path, job: Job, tidemill: Tidemill) -> None:
    rows = write_corpus(tmp_path / "in", shards=1)
    books = report(tidemill("run", job(segments={"policy": "error"}), "--json"))["books"]
    assert books["quarantined"]["too_long"] > 0
    assert books["rows_out"] + books["quarantined"]["too_long"] == rows


class Gone(flow.Silent):
    """As a terminal that was closed."""

    def done(self, outcome: Outcome) -> None:
        raise BrokenPipeError


def test_a_watch_that_fails_is_no_fault_of_the_store(tmp_path: Path, job: Job) -> None:
    write_corpus(tmp_path / "in", shards=1)
    with pytest.raises(BrokenPipeError):
        flow.run(load(job()), Gone())
