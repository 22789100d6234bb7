"""Shards that are rewritten or removed and weights that are swapped while a run works: never a mixture, never a wrong record."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from operators.schema import TEXT
from pipeline import flow, open_output
from pipeline.config import load
from pipeline.errors import Incomplete
from pipeline.ledger.pieces import Todo
from pipeline.planning import Plan
from pipeline.sections import Input
from pipeline.source import jsonl
from pipeline.source.listing import list_shards
from pipeline.source.planning import Pins, plan_source
from pipeline.source.reading import ReadRecipe, read_span
from pipeline.stages import Outcome
from tests.chaos.profile import tally
from tests.jobs.conftest import write_corpus
from tests.tiny import tiny_sentence_transformer

Job = Callable[..., Path]


class Meddler:
    """Does something when the plan stands, or when the first piece is settled."""

    def __init__(self, *, planned: Callable[[], object] | None = None, done: Callable[[], object] | None = None) -> None:
        self._planned = planned
        self._done = done

    def planned(self, plan: Plan) -> None:
        """Once."""
        if self._planned:
            self._planned()

    def done(self, outcome: Outcome) -> None:
        """Once."""
        done, self._done = self._done, None
        if done:
            done()


def write_shard(path: Path, word: str, rows: int = 4000) -> None:
    """A shard all of whose texts say by which version they were written; every version has the same size."""
    texts = [f"{word} {i:06d}" for i in range(rows)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=500, compression="none", use_dictionary=False)
        return
    content = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("store", ["local", "s3"])
def test_a_shard_rewritten_between_two_pieces_gives_no_further_piece(
    tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch, name: str, store: str
) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK", 4096)
    write_shard(tmp_path / name, "old")
    options: dict[str, Any] = {}
    path, bucket = str(tmp_path / name), ""
    if store == "s3":
        bucket, options = s3_server.make_bucket(), s3_server.storage_options
        path = f"s3://{bucket}/{name}"
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)

    def put(word: str) -> None:
        write_shard(tmp_path / name, word)
        if store == "s3":
            client.put_object(Bucket=bucket, Key=name, Body=(tmp_path / name).read_bytes())

    put("old")
    settings = Input(path=path, piece=10_000, storage_options=options)
    plan = plan_source(settings, list_shards(settings, "/nowhere/out"), Pins(), {})
    recipe = ReadRecipe("text", None, plan.keep, settings.max_document, storage_options=options)
    todos = [Todo(span) for span in plan.spans]
    pieces = (piece for todo in todos for piece in read_span(todo, recipe))
    first = next(pieces)
    assert {t[:3] for t in first.documents[TEXT].to_pylist()} == {"old"}
    put("new")
    with pytest.raises(Exception, match="changed during the run"):
        next(pieces)


@pytest.mark.parametrize("change", ["rewritten", "removed"])
def test_a_run_publishes_nothing_of_a_shard_that_changed_and_the_next_one_takes_it_up(
    tmp_path: Path, job: Job, change: str
) -> None:
    rows = write_corpus(tmp_path / "in", shards=6)
    config = load(job())
    victim = sorted((tmp_path / "in").iterdir(), key=lambda p: p.stat().st_size)[0]  # the smallest is read last

    def meddle() -> None:
        if change == "removed":
            victim.unlink()
        else:
            victim.write_bytes(victim.read_bytes())
            os.utime(victim, ns=(1, 1))

    with pytest.raises(Incomplete, match="during the run"):
        flow.run(config, Meddler(planned=meddle))
    assert not (tmp_path / "out" / "_commits").exists()
    again = flow.run(config)
    assert again["reused"] == again["pieces"] - (0 if change == "removed" else 1)
    shards = set(open_output(str(tmp_path / "out")).to_table(columns=["_shard"])["_shard"].to_pylist())
    assert (victim.name in shards) == (change == "rewritten")
    assert again["books"]["rows_in"] == rows - (40 if change == "removed" else 0)
    tally("kills", f"shard {change}", {"faults": 1, "rows_lost": 0, "rows_doubled": 0})


def _swap(model: Path, other: Path, how: str) -> None:
    for file in model.rglob("*.safetensors"):
        new = (other / file.relative_to(model)).read_bytes()
        if how == "in place":
            with file.open("r+b") as opened:
                opened.write(new)
        else:
            file.with_suffix(".new").write_bytes(new)
            file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("how", ["in place", "replaced"])
@pytest.mark.parametrize("when", ["planned", "done"])
def test_weights_swapped_during_the_run_make_no_record(tmp_path: Path, job: Job, how: str, when: str) -> None:
    write_corpus(tmp_path / "in", shards=4, rows=60)
    model = tiny_sentence_transformer(tmp_path / "model", max_seq_length=32)
    other = _other_weights(tmp_path / "other", model)
    config = load(job(tasks={"vector": {"head": "embedding", "model": str(model)}}))
    with pytest.raises(Incomplete, match="nothing is recorded with it"):
        flow.run(config, Meddler(**{when: lambda: _swap(model, other, how)}))
    assert not (tmp_path / "out" / "_commits").exists()
    recorded = {p.stem for p in (tmp_path / "out").glob("_records/*/*.json")}
    assert (len(recorded) > 0) == (when == "done")
    done = flow.run(config)
    assert done["encoded"] == done["pieces"]  # the new weights are another generation
    tally("kills", f"weights swapped {how} when {when}", {"faults": 1, "rows_lost": 0, "rows_doubled": 0})


def test_a_tokenizer_swapped_during_the_run_makes_no_record(tmp_path: Path, job: Job) -> None:
    write_corpus(tmp_path / "in", shards=2)
    model = tiny_sentence_transformer(tmp_path / "model", max_seq_length=32)
    config = load(job(tasks={"vector": {"head": "embedding", "model": str(model)}}))
    (file,) = model.rglob("tokenizer.json")

    def swap() -> None:
        vocabulary = json.loads(file.read_text())
        vocabulary["normalizer"] = None
        file.write_text(json.dumps(vocabulary))

    with pytest.raises(Incomplete, match="nothing is recorded with it"):
        flow.run(config, Meddler(planned=swap))
    assert not list((tmp_path / "out").glob("_records/*/*.json"))


def _other_weights(folder: Path, model: Path) -> Path:
    """The same tensors, each number negated: files of exactly the same size."""
    for file in model.rglob("*.safetensors"):
        target = folder / file.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: -tensor for name, tensor in safetensors.torch.load_file(file).items()}
        safetensors.torch.save_file(tensors, target, {"format": "pt"})
        assert target.stat().st_size == file.stat().st_size
    return folder
