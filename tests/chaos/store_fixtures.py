"""What the tests of storage faults share: a corpus in a bucket, the calm run's table, jobs whose stores are behind a proxy."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import flow, open_output
from pipeline.config import Config, from_dict
from pipeline.errors import ConfigError, Incomplete
from pipeline.ledger.publish import head, manifest_records
from pipeline.ledger.store import open_store
from pipeline.table import open_table
from tests.chaos.profile import tally
from tests.chaos.proxy import Proxy, Rule, serve
from tests.conftest import S3
from tests.jobs.conftest import write_corpus
from tests.tiny import tiny_sentence_transformer

PIECE = 12_000
"""Bytes of text in a piece: some ten pieces in all."""


@dataclass
class Corpus:
    """Shards in a bucket, the table that a run without faults makes of them, and what the test has counted so far."""

    s3: S3
    bucket: str
    model: Path
    rows: int
    calm: pa.Table = field(default_factory=lambda: pa.table({}))
    counts: Counter[str] = field(default_factory=Counter)

    def config(
        self,
        endpoint_url: str,
        output: str | None = None,
        *,
        impatient: bool = False,
        alone: bool = False,
        **runtime: Any,
    ) -> Config:
        """The job with both its stores at `endpoint_url`; `output`: where it writes, a new bucket unless given.

        `impatient`: short timeouts, and no attempts of the storage library's own, for tests in which much must fail.
        `alone`: the only writer."""
        impatience = {"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 0}}} if impatient else {}
        return from_dict(
            {
                "name": "faults",
                "input": {
                    "path": f"s3://{self.bucket}/in", "keep": ["lang"], "id": "doc", "piece": PIECE,
                    "storage_options": {"endpoint_url": endpoint_url, **impatience},
                },
                "segments": {"overlap": 6},
                "tasks": {"vector": {"head": "embedding", "model": str(self.model)}},
                "output": {"path": output or self.new_output(), "single_writer": alone},
                "runtime": {"engine": "local", "device": "cpu", **runtime},
            }
        )  # fmt: skip

    def new_output(self) -> str:
        """A table's place in a bucket of its own."""
        return f"s3://{self.s3.make_bucket()}/table"

    def client(self) -> Any:
        """boto3, past any proxy."""
        return boto3.client("s3", endpoint_url=self.s3.endpoint_url)

    @contextmanager
    def proxy(self, seed: int, *rules: Rule) -> Iterator[Proxy]:
        """A proxy in front of the server, whose counts are the test's."""
        with serve(self.s3.endpoint_url, seed, *rules) as proxy:
            yield proxy
        self.counts.update({"requests": proxy.requests, **{f"injected {kind}": n for kind, n in proxy.injected.items()}})

    def run(self, config: Config) -> dict[str, Any]:
        """One run of the job in this process."""
        self.counts["jobs"] += 1
        return flow.run(config)

    def fail(self, config: Config) -> Incomplete:
        """A run that has to end with exit code 3, in words."""
        with pytest.raises(Incomplete, match="again") as caught:
            self.run(config)
        self.counts["jobs failed in words"] += 1
        return caught.value

    def table(self, output: str) -> pa.Table:
        """The committed rows, read without any fault, in order; without encoded bytes that differ from run to run."""
        options = self.s3.storage_options
        table = open_output(output, storage_options=options).to_table()
        return table.sort_by([("id", "ascending"), ("_row", "ascending")])

    def check(self, output: str) -> None:
        """The table is the calm one, nothing is set aside, and its books are closed: every row once."""
        found = self.table(output)
        wanted, ids = self.calm["id"].to_pylist(), found["id"].to_pylist()
        self.counts["rows lost"] += len(set(wanted) - set(ids))
        self.counts["rows doubled"] += len(ids) - len(set(ids))
        assert ids == wanted
        assert found.equals(self.calm)
        store = open_store(output, self.s3.storage_options)
        commit = head(store)
        assert commit is not None
        assert (commit.totals["rows_in"], commit.totals["quarantined"]) == (self.rows, {})
        check_version(output, self.s3.storage_options, commit.version)


def check_version(output: str, options: dict[str, Any], version: int | None = None) -> int:
    """Read every file of a version whole, against its records and its commit; returns the version."""
    store, commit = open_table(output, options, version)
    records = manifest_records(store, commit)
    for record in records:
        if record.file:
            data = store.get(record.file)
            assert len(data) == record.bytes
            assert pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False).num_rows == record.rows_out
    assert len({r.piece for r in records}) == len(records) == commit.totals["pieces"]
    assert sum(r.rows_out for r in records) == commit.totals["rows_out"]
    return commit.version


@contextmanager
def polling(output: str, options: dict[str, Any]) -> Iterator[list[int]]:
    """A reader that opens the newest version again and again while the body runs, each time checking all of it; yields the
    versions that it saw. What it found wrong is raised at the end."""
    seen: list[int] = []
    problems: list[BaseException] = []
    done = threading.Event()

    def poll() -> None:
        while not done.wait(0.05) and not problems:
            try:
                seen.append(check_version(output, options))
            except ConfigError as error:  # nothing was committed yet
                if "there is no committed table" not in str(error):
                    problems.append(error)
            except BaseException as error:  # noqa: BLE001 -- raised below
                problems.append(error)

    reader = threading.Thread(target=poll, name="reader")
    reader.start()
    try:
        yield seen
    finally:
        done.set()
        reader.join(60)
    if problems:
        raise problems[0]
    assert seen == sorted(seen), "a version went back"


@pytest.fixture(scope="session")
def _shards(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rows = write_corpus(folder, shards=3, rows=60)
    bucket = s3_server.make_bucket()
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    for path in folder.iterdir():
        client.upload_file(str(path), bucket, f"in/{path.name}")
    model = tiny_sentence_transformer(tmp_path_factory.mktemp("model"), max_seq_length=32)
    corpus = Corpus(s3_server, bucket, model, rows)
    output = corpus.new_output()
    corpus.run(corpus.config(s3_server.endpoint_url, output))
    corpus.calm = corpus.table(output)
    return corpus


@pytest.fixture
def corpus(_shards: Corpus, request: pytest.FixtureRequest) -> Iterator[Corpus]:
    """The corpus; what the test counts goes to build/trust/faults.json."""
    own = Corpus(_shards.s3, _shards.bucket, _shards.model, _shards.rows, _shards.calm)
    own.counts.update({"rows lost": 0, "rows doubled": 0})
    yield own
    tally("faults", request.node.name, dict(own.counts))
