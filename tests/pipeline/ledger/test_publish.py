"""Versions: what a new one holds, who is fenced, and what happens when others publish at the same time."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from pipeline.errors import Fenced, Incomplete, TidemillError
from pipeline.ledger import publish as publishing
from pipeline.ledger.notes import files_of
from pipeline.ledger.pieces import Span
from pipeline.ledger.publish import Commit, Draft, commit_key, commit_schema, encode_schema, head, manifest_records, read_commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import FileStore, Store, Unknown, open_store

MakeSpan = Callable[..., Span]
MakeRecord = Callable[..., Record]
MakeDraft = Callable[..., Draft]
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float16(), 3))])


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return FileStore(str(tmp_path))
    return open_store(request.getfixturevalue("s3_url")(), request.getfixturevalue("s3_server").storage_options)


@pytest.fixture
def make_draft(make_span: MakeSpan, make_record: MakeRecord) -> MakeDraft:
    """A draft of shards ("name" or "name@version"), which reads the head's version as its base unless told."""

    def make(run: str, shards: str, base: int = 0, generation: str = "g1", keep: bool = True, schema: str = "s1") -> Draft:
        named = [name.split("@") for name in shards.split()]
        spans = [make_span(name, version=version[0] if version else "v1") for name, *version in named]
        return Draft(
            run_id=run,
            generation=generation,
            fingerprint={"model": "m"},
            pins={"piece_bytes": 100, "precision": "fp32"},
            schema=encode_schema(SCHEMA),
            records=[make_record(s, generation=generation, schema=schema) for s in spans],
            shards=frozenset(s.shard.key for s in spans),
            keep_removed=keep,
            base=base,
        )

    return make


def written(store: Store, draft: Draft) -> Draft:
    """The same draft, its files written."""
    for key in (key for record in draft.records for key in files_of(record)):
        store.put(key, b"rows")
    return draft


def publish(store: Store, draft: Draft) -> Commit:
    return publishing.publish(store, written(store, draft), count_duplicates=len, pause=lambda _: None)


def shards(store: Store, commit: Commit) -> list[str]:
    return [f"{r.shard}@{r.version}" for r in manifest_records(store, commit)]


@pytest.mark.parametrize("name", ["README.md", "00000002.json.bak", "copy of 00000001.json", "zzz.json", "old/00000009.json"])
def test_other_files_among_the_commits_are_no_versions(store: Store, make_draft: MakeDraft, name: str) -> None:
    store.put(f"_commits/{name}", b"not a commit")
    assert head(store) is None
    commit = publish(store, make_draft("r1", "a"))
    assert (commit.version, head(store)) == (1, commit)


def test_the_first_version(store: Store, make_draft: MakeDraft) -> None:
    assert head(store) is None
    commit = publish(store, make_draft("r1", "b a"))
    assert head(store) == commit == read_commit(store, 1)
    assert (commit.version, commit.parent, commit.run_id, commit.duplicate_ids) == (1, None, "r1", 2)
    assert commit_schema(commit).equals(SCHEMA)
    assert manifest_records(store, commit) == sorted(make_draft("r1", "a b").records, key=lambda r: r.shard)
    assert commit.totals == {
        "pieces": 2,
        "rows_in": 20,
        "rows_out": 16,
        "quarantined": {"bad_json": 2, "null_text": 2},
        "filtered": 0,
        "bytes": 246,
        "statistics": {"tokens": 80.0},
    }


def test_versions_are_a_chain(store: Store, make_draft: MakeDraft) -> None:
    publish(store, make_draft("r1", "a"))
    second = publish(store, make_draft("r2", "b", base=1))
    assert second.version == 2
    assert second.parent == hashlib.sha256(store.get(commit_key(1))).hexdigest()
    assert shards(store, second) == ["a@v1", "b@v1"]
    assert shards(store, read_commit(store, 1)) == ["a@v1"]
    with pytest.raises(FileNotFoundError):
        read_commit(store, 3)


def test_nothing_new_is_no_version(store: Store, make_draft: MakeDraft) -> None:
    first = publish(store, make_draft("r1", "a b"))
    assert publish(store, make_draft("r2", "a b", base=1)) == first
    assert publish(store, make_draft("r3", "a", base=1)) == first
    assert store.list("_commits") == ["_commits/00000001.json"]
    assert len(store.list("_manifests")) == 1


def test_removed_shards_leave_where_the_table_mirrors_its_input(store: Store, make_draft: MakeDraft) -> None:
    publish(store, make_draft("r1", "a b"))
    assert shards(store, publish(store, make_draft("r2", "a", base=1, keep=False))) == ["a@v1"]


def test_a_changed_shard_replaces_itself(store: Store, make_draft: MakeDraft) -> None:
    publish(store, make_draft("r1", "a b"))
    assert shards(store, publish(store, make_draft("r2", "a@v2", base=1))) == ["a@v2", "b@v1"]


def test_a_new_generation_replaces_everything_at_once(store: Store, make_draft: MakeDraft) -> None:
    first = publish(store, make_draft("r1", "a b"))
    second = publish(store, make_draft("r2", "a", base=1, generation="g2"))
    assert shards(store, second) == ["a@v1"]
    assert {r.generation for r in manifest_records(store, second)} == {"g2"}
    assert {r.generation for r in manifest_records(store, first)} == {"g1"}


def test_a_run_that_saw_the_old_generation_is_fenced(store: Store, make_draft: MakeDraft) -> None:
    publish(store, make_draft("r1", "a"))
    publish(store, make_draft("r2", "a", base=1, generation="g2"))
    with pytest.raises(Fenced, match="version 2 of generation g2 was committed by run r2"):
        publish(store, make_draft("late", "a b", base=1))
    assert head(store) == read_commit(store, 2)
    assert publish(store, make_draft("on purpose", "a", base=2)).version == 3


def test_two_schemas_in_one_table(store: Store, make_draft: MakeDraft) -> None:
    publish(store, make_draft("r1", "a"))
    with pytest.raises(Incomplete, match="2 output schemas"):
        publish(store, make_draft("r2", "b", base=1, schema="s2"))


def before_committing(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Let a rival publish between this run's look at the head and its commit, once."""
    original = publishing.commit_once

    def rival_first(store: Store, commit: Commit, records: Sequence[Record]) -> bool:
        monkeypatch.setattr(publishing, "commit_once", original)
        do()
        return original(store, commit, records)

    monkeypatch.setattr(publishing, "commit_once", rival_first)


def test_runs_at_the_same_time_are_joined(store: Store, make_draft: MakeDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    before_committing(monkeypatch, lambda: publish(store, make_draft("rival", "b c@v2")))
    commit = publish(store, make_draft("r1", "a c"))
    assert (commit.version, commit.run_id) == (2, "r1")
    assert shards(store, commit) == ["a@v1", "b@v1", "c@v1"]
    assert commit.duplicate_ids == 3


def test_a_rival_that_published_the_same(store: Store, make_draft: MakeDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    before_committing(monkeypatch, lambda: publish(store, make_draft("rival", "a b")))
    commit = publish(store, make_draft("r1", "a"))
    assert (commit.version, commit.run_id) == (1, "rival")


def test_a_rival_of_another_generation_fences(store: Store, make_draft: MakeDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    before_committing(monkeypatch, lambda: publish(store, make_draft("rival", "a", generation="g2")))
    with pytest.raises(Fenced):
        publish(store, make_draft("r1", "a"))


class Faulty(FileStore):
    """`create` works, but the answer is lost; then a rival commits on top."""

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        raise Unknown("timeout")


@pytest.mark.parametrize("rivals", [0, 2])
def test_an_answer_that_was_lost(tmp_path: Path, make_draft: MakeDraft, rivals: int) -> None:
    calm, faulty = FileStore(str(tmp_path)), Faulty(str(tmp_path))

    def pause(_: float) -> None:
        for n in range(rivals):
            publish(calm, make_draft(f"rival {n}", f"b{n}", base=1 + n, keep=False))

    draft = written(calm, make_draft("r1", "a"))
    commit = publishing.publish(faulty, draft, count_duplicates=len, pause=pause)
    assert (commit.version, commit.run_id) == (1, "r1")
    assert len(calm.list("_commits")) == 1 + rivals


def test_rivals_without_end(tmp_path: Path, make_draft: MakeDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "commit_once", lambda *_: False)
    with pytest.raises(TidemillError, match="50 times another run's commit came first"):
        publish(FileStore(str(tmp_path)), make_draft("r1", "a"))


def test_a_damaged_commit_is_named(store: Store, make_draft: MakeDraft) -> None:
    publish(store, make_draft("r1", "a"))
    plain = json.loads(store.get(commit_key(1)))
    store.create(commit_key(2), json.dumps({**plain, "version": "two"}).encode())
    with pytest.raises(TidemillError, match=r"_commits/00000002\.json is not a commit: 1 fields are wrong"):
        head(store)


def test_commits_of_a_later_program_are_read(store: Store, make_draft: MakeDraft) -> None:
    first = publish(store, make_draft("r1", "a"))
    plain = json.loads(store.get(commit_key(1)))
    store.create(commit_key(2), json.dumps({**plain, "version": 2, "colour": "blue"}).encode())
    assert head(store) == replace(first, version=2)


class _LossyProxy(BaseHTTPRequestHandler):
    """Hands requests on to the real server, but hangs up instead of answering the first PUT of a commit, which has worked."""

    protocol_version = "HTTP/1.1"
    server_url: str
    lost: list[str]

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = HTTPConnection(urlsplit(self.server_url).netloc)
        connection.request(self.command, self.path, body, dict(self.headers))
        with closing(connection), connection.getresponse() as response:
            answer = response.read()
            if self.command == "PUT" and "_commits" in self.path and not self.lost:
                self.lost.append(self.path)
                self.close_connection = True
                return
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_PUT = do_HEAD = _forward


def test_an_answer_that_was_lost_on_the_wire(make_draft: MakeDraft, request: pytest.FixtureRequest) -> None:
    """s3fs repeats the PUT and is told that the commit exists: it is the run's own, so it has published."""
    url, server = request.getfixturevalue("s3_url")(), request.getfixturevalue("s3_server")
    lost: list[str] = []
    handler = type("Handler", (_LossyProxy,), {"server_url": server.endpoint_url, "lost": lost})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        store = open_store(url, {"endpoint_url": f"http://127.0.0.1:{proxy.server_port}"})
        commit = publish(store, make_draft("r1", "a"))
        proxy.shutdown()
        thread.join()
    assert len(lost) == 1
    assert (commit.version, commit.run_id) == (1, "r1")
    assert open_store(url, server.storage_options).list("_commits") == ["_commits/00000001.json"]
