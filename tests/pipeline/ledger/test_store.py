"""Stores: local disk, S3, GCS and Azure by servers of their kinds; and the condition that goes over the wire."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from gcsfs.extended_gcsfs import BucketType, ExtendedGcsFileSystem

from pipeline.errors import ConfigError
from pipeline.ledger.probe import check_create_only
from pipeline.ledger.store import Exists, FileStore, FsspecStore, Store, Unknown, open_store
from tests.conftest import Place


@pytest.fixture
def store(place: Place) -> Store:
    return open_store(place.url, place.storage_options)


def test_put_get_list(store: Store) -> None:
    assert store.list("_commits") == []
    for key in ("data/g/2", "data/g/1", "data/h/1", "database/1"):
        store.put(key, key.encode())
    assert store.list("data") == ["data/g/1", "data/g/2", "data/h/1"]
    assert store.list("data/g") == ["data/g/1", "data/g/2"]
    assert store.get_many(["data/h/1", "data/g/1"]) == [b"data/h/1", b"data/g/1"]
    store.delete("data/g/1")
    assert store.list("data/g") == ["data/g/2"]
    with pytest.raises(FileNotFoundError):
        store.get("data/g/1")


def test_create_never_overwrites(store: Store) -> None:
    store.create("_commits/1", b"first")
    with pytest.raises(Exists):
        store.create("_commits/1", b"second")
    assert store.get("_commits/1") == b"first"
    assert store.list("_commits") == ["_commits/1"]


def test_what_another_writer_adds_is_listed_at_once(store: Store) -> None:
    other = pickle.loads(pickle.dumps(store))
    store.create("_commits/1", b"1")
    assert other.list("_commits") == ["_commits/1"]
    store.create("_commits/2", b"2")
    assert other.list("_commits") == ["_commits/1", "_commits/2"]
    assert other.url("_commits/1") == store.url("_commits/1")


def test_probe_finds_a_real_guard(store: Store) -> None:
    assert check_create_only(store) is None
    assert store.list("_probe") == []


def test_one_of_sixteen_wins_each_key(store: Store) -> None:
    writers, keys = 16, [f"_records/g/{n}" for n in range(5)]
    stores = [pickle.loads(pickle.dumps(store)) for _ in range(writers)]
    start = threading.Barrier(writers)

    def race(writer: int) -> list[str]:
        won = []
        for key in keys:
            start.wait()
            try:
                stores[writer].create(key, str(writer).encode())
            except Exists:
                continue
            won.append(key)
        return won

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(race, range(writers)))
    assert sorted(key for mine in won for key in mine) == keys
    for writer, mine in enumerate(won):
        assert store.get_many(mine) == [str(writer).encode()] * len(mine)


class Overwriting(FileStore):
    """As a server that takes the request and ignores its condition."""

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


def test_probe_finds_a_missing_guard(tmp_path: Path) -> None:
    assert check_create_only(Overwriting(str(tmp_path))) == "8 of 8 writers created the same key at once; expected exactly one"
    assert list((tmp_path / "_probe").iterdir()) == []


def _create_all(root: str, name: str, barrier: Barrier, wins: Queue[tuple[int, str]]) -> None:
    store = FileStore(root)
    barrier.wait()
    for i in range(50):
        try:
            store.create(f"_records/{i}", name.encode())
        except Exists:
            continue
        wins.put((i, name))


def test_one_of_many_processes_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_create_all, args=(str(tmp_path), f"p{n}", barrier, wins)) for n in range(3)]
    for process in processes:
        process.start()
    won = dict(wins.get(timeout=60) for _ in range(50))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert wins.empty()
    assert sorted(won) == list(range(50))
    assert all((tmp_path / "_records" / str(i)).read_text() == name for i, name in won.items())


def test_what_a_crash_leaves_behind_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(str(tmp_path))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.put("data/1", b"half")
    assert len(list((tmp_path / "data").iterdir())) == 1
    assert store.list("data") == []
    with pytest.raises(FileNotFoundError):
        store.get("data/1")


def test_a_full_disk_is_not_kept_full_by_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(str(tmp_path))
    store.put("data/0", b"whole")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for write in (store.put, store.create):
        with pytest.raises(OSError, match="No space left"):
            write("data/1", b"half")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["0"]


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(str(tmp_path))
    store.put("_records/g/1.json", b"{}")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        store.list("_records/g")


def test_local_create_needs_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match=r"output\.path: .*has no hard links"):
        FileStore(str(tmp_path)).create("_commits/1", b"1")
    FileStore(str(tmp_path), single_writer=True).create("_commits/1", b"1")
    with pytest.raises(Exists):
        FileStore(str(tmp_path), single_writer=True).create("_commits/1", b"2")
    assert list((tmp_path / "_commits").iterdir()) == [tmp_path / "_commits" / "1"]


def test_an_error_of_the_disk_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(Unknown, match="cannot tell whether _commits/1 was created"):
        FileStore(str(tmp_path)).create("_commits/1", b"1")


def test_a_local_store_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("out/table")
    assert store.url("a") == str(tmp_path / "out" / "table" / "a")
    assert open_store(f"file://{tmp_path}/out/table").url("a") == store.url("a")


def test_a_store_without_guard_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"output\.path: memory:// has no create-only write"):
        open_store("memory://table")
    store = open_store("memory://table", single_writer=True)
    store.create("_commits/1", b"1")
    with pytest.raises(Exists):
        store.create("_commits/1", b"2")
    assert store.get("_commits/1") == b"1"
    assert store.list("_commits") == ["_commits/1"]


def test_a_bucket_that_is_not_there_is_unknown_and_named(request: pytest.FixtureRequest) -> None:
    store = open_store("s3://no-such-bucket-at-all/table", request.getfixturevalue("s3_server").storage_options)
    with pytest.raises(Unknown, match="_commits/1"):
        store.create("_commits/1", b"1")


class _Objects(BaseHTTPRequestHandler):
    """The two uploads of Google Cloud Storage and Azure Blob Storage, with their conditions, and nothing else."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = urlsplit(self.path).path
        if self.headers.get("If-None-Match") == "*" and name in self.objects:
            return self._reply(409, x_ms_error_code="BlobAlreadyExists")
        self.objects[name] = body
        self._reply(201, ETag='"1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = json.JSONDecoder().raw_decode(body[body.index(b"{") :].decode("latin1"))[0]["name"]
        if parse_qs(urlsplit(self.path).query).get("ifGenerationMatch") == ["0"] and name in self.objects:
            return self._reply(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
        self.objects[name] = body
        self._reply(200, json.dumps({"name": name, "bucket": "b", "size": "1"}).encode(), Content_Type="application/json")


@pytest.fixture
def objects_server() -> Iterator[str]:
    handler = type("Handler", (_Objects,), {"objects": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _azure(url: str) -> Store:
    account = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint={url}/a;"
    return open_store("az://container/table", {"account_name": "a", "connection_string": account, "skip_instance_cache": True})


def _gcs(url: str) -> Store:
    fs = ExtendedGcsFileSystem(endpoint_url=url, token="anon", skip_instance_cache=True)  # what gcsfs is outside of tests
    fs._storage_layout_cache["b"] = BucketType.NON_HIERARCHICAL  # else it asks a service that is not here
    return FsspecStore("gs://b/table", fs, "b/table")


@pytest.mark.parametrize("open_at", [_azure, _gcs])
def test_azure_and_gcs_send_the_condition(objects_server: str, open_at: Callable[[str], Store]) -> None:
    store = open_at(objects_server)
    store.create("_commits/1", b"first")
    with pytest.raises(Exists):
        store.create("_commits/1", b"second")
    store.put("_commits/1", b"put has no condition")
