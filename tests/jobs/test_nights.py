"""A corpus that changes from night to night: what is opened is counted at the store, and tables are compared row for row."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

import operators.encoders.torch
from pipeline import open_output
from pipeline.config import Config, from_dict
from pipeline.flow import run
from pipeline.ledger.store import open_store
from tests.conftest import S3
from tests.jobs.conftest import text

SHARDS = 100


@dataclass
class Counting:
    """A second door to the S3 server that counts requests by method and key."""

    app: Any
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    url: str = ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.seen[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
        return self.app(environ, start_response)  # type: ignore[no-any-return]

    def read(self, folder: str) -> set[str]:
        """Names of the objects below `folder` that were asked for in any way."""
        return {m[1] for (_, path), _ in self.seen.items() if (m := re.search(rf"/{folder}/([^/]+)$", path))}


@pytest.fixture
def counting(s3_server: S3) -> Iterator[Counting]:
    """Counts what a job asks for; the objects are those of `s3_server`."""
    door = Counting(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=MotoRequestHandler)
    door.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield door
    server.shutdown()
    thread.join()
    server.server_close()


def _shard(seed: int, rows: int = 4) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": [text(seed * 100 + r, 3 + (seed + r) % 40) for r in range(rows)], "n": range(rows)})
    pq.write_table(table, sink)
    return sink.getvalue()


def _config(source: str, output: str, model: Path, options: dict[str, Any], **overrides: Any) -> Config:
    return from_dict(
        {
            "input": {"path": source, "keep": ["n"], "storage_options": options},
            "segments": {"overlap": overrides.pop("overlap", 6)},
            "tasks": {"vector": {"head": "embedding", "model": str(model)}},
            "output": {"path": output, **overrides},
            "runtime": {"engine": "local", "device": "cpu"},
        }
    )


def _rows(output: str, version: int | None = None, shard: str | None = None) -> pa.Table:
    """The table's rows (of one shard), in order of shard and position, in one chunk."""
    chosen = None if shard is None else ds.field("_shard") == shard
    table = open_output(output, version=version).to_table(filter=chosen)
    assert pa.types.is_dictionary(table["_shard"].type)
    return table.set_column(0, "_shard", table["_shard"].cast(pa.string())).combine_chunks()


def test_a_night_opens_what_is_new_and_equals_a_run_from_scratch(
    s3_server: S3, counting: Counting, tiny_model: Path, tmp_path: Path
) -> None:
    bucket, options = s3_server.make_bucket(), {"endpoint_url": counting.url}
    s3 = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    for n in range(SHARDS):
        s3.put_object(Bucket=bucket, Key=f"in/s{n:03}.parquet", Body=_shard(n))
    source, out = f"s3://{bucket}/in/", str(tmp_path / "out")
    first = run(_config(source, out, tiny_model, options))
    assert (first["encoded"], first["version"]) == (SHARDS, 1)
    gone = _rows(out, version=1, shard="s013.parquet")
    assert gone.num_rows == 4

    changed = ["s007.parquet", "s042.parquet", "s099.parquet"]
    for n, name in enumerate([*changed, "s100.parquet"]):
        s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=_shard(500 + n, rows=5))
    s3.delete_object(Bucket=bucket, Key="in/s013.parquet")
    counting.seen.clear()
    night = run(_config(source, out, tiny_model, options))
    assert (night["encoded"], night["version"]) == (4, 2)
    assert counting.read("in") == {*changed, "s100.parquet"}
    counting.seen.clear()
    dropped = run(_config(source, out, tiny_model, options, removed="drop"))
    assert (dropped["encoded"], dropped["version"]) == (0, 3)
    assert counting.read("in") == set()

    run(_config(source, str(tmp_path / "scratch"), tiny_model, options))
    scratch = _rows(str(tmp_path / "scratch"))
    assert _rows(out).equals(scratch)
    assert _rows(out, version=2, shard="s013.parquet").equals(gone)
    assert _rows(out, version=2).num_rows == scratch.num_rows + gone.num_rows


def test_a_night_with_nothing_new_opens_loads_and_writes_nothing(
    s3_server: S3, counting: Counting, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, options = s3_server.make_bucket(), {"endpoint_url": counting.url}
    s3 = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    for n in range(12):
        s3.put_object(Bucket=bucket, Key=f"in/s{n:03}.parquet", Body=_shard(n))
    s3.put_object(Bucket=bucket, Key="in/lines.jsonl", Body=b'{"text": "river", "n": 1}\n')
    config = _config(f"s3://{bucket}/in/", f"s3://{bucket}/out", tiny_model, options)
    run(config)
    table = open_store(f"s3://{bucket}/out", options)
    before = table.list("")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(operators.encoders.torch, "load", refuse)
    counting.seen.clear()
    started = time.perf_counter()
    night = run(config)
    assert time.perf_counter() - started < 5
    assert (night["published"], night["encoded"], night["version"], night["reused"]) == (False, 0, 1, 13)
    assert table.list("") == before
    assert counting.read("in") == set()
    assert {method for method, _ in counting.seen} <= {"GET", "HEAD"}
