"""Vacuum on a real disk and a real S3 server: what goes, what stays, and when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.errors import ConfigError, Incomplete, TidemillError
from pipeline.ledger import publish, records, vacuum
from pipeline.ledger.leftovers import unfinished
from pipeline.ledger.notes import files_of, read_notes
from pipeline.ledger.pieces import Span
from pipeline.ledger.publish import Commit, Draft
from pipeline.ledger.records import Record
from pipeline.ledger.store import FileStore, Store, open_store
from pipeline.ledger.vacuum import Found, Rules
from tests.conftest import Place

GRACE = 1.2
"""Seconds. A server tells the time to the second, so what is to be old has to be two seconds old."""
OLD = 2.3


@dataclass
class Written:
    """A table, and how runs write there."""

    store: Store
    make_span: Callable[..., Span]
    make_record: Callable[..., Record]

    def record(self, shard: str, version: str = "v1", attempt: str = "1", generation: str = "g1") -> Record:
        """A piece's files and record, written."""
        span = self.make_span(shard, version=version)
        name = f"{generation}/{span.piece_id(0)}-{attempt}.parquet"
        files = {"file": f"data/{name}", "quarantine_file": f"quarantine/{name}"}
        record = self.make_record(span, generation=generation, **files)
        for key in files_of(record):
            self.store.put(key, b"rows")
        return records.write_record(self.store, record)

    def commit(self, *written: Record) -> Commit:
        """A version of exactly these records."""
        head = publish.head(self.store)
        draft = Draft(
            run_id=f"run{head.version + 1 if head else 1}",
            generation=written[0].generation,
            fingerprint={},
            pins={},
            schema="",
            records=written,
            shards=frozenset(r.shard for r in written),
            keep_removed=False,
            base=head.version if head else 0,
        )
        return publish.publish(self.store, draft, count_duplicates=lambda _: 0)

    def vacuum(self, versions: int = 1, grace: float = GRACE) -> Found:
        """A dry run and then a real one, which must say the same."""
        planned = vacuum.vacuum(self.store, Rules(versions, grace), act=False)
        done = vacuum.vacuum(self.store, Rules(versions, grace), act=True)
        assert (planned.versions, planned.records, planned.files) == (done.versions, done.records, done.files)
        return done

    def keys(self) -> set[str]:
        """All that is stored."""
        return {
            k for folder in ("data", "quarantine", "_records", "_manifests", "_commits", "_runs") for k in self.store.list(folder)
        }


@pytest.fixture
def written(place: Place, make_span: Callable[..., Span], make_record: Callable[..., Record]) -> Written:
    return Written(open_store(place.url, place.storage_options), make_span, make_record)


def keys(entries: list[Any]) -> set[str]:
    return {entry.key for entry in entries}


def test_old_versions_and_lost_attempts_go_in_two_phases(written: Written) -> None:
    store = written.store
    old, stays = written.record("a"), written.record("b")
    first = written.commit(old, stays)
    new = written.record("a", "v2")
    second = written.commit(new, stays)
    crashed = written.record("c")
    lost = "data/g1/0000-lost.parquet"
    for key in (lost, "_runs/run1/report.json", "_runs/run2/report.json", "_runs/killed/held.json", "_attempts/g1/p-1.json"):
        store.put(key, b"x")
    time.sleep(OLD)

    phase_one = written.vacuum()
    assert phase_one.versions == [1]
    assert keys(phase_one.records) == {records.record_key("g1", r.piece) for r in (old, crashed)}
    assert keys(phase_one.others) == {"_runs/run1/report.json", "_runs/killed/held.json", "_attempts/g1/p-1.json"}
    given_up = {lost, first.manifest, *files_of(old), *files_of(crashed)}
    assert phase_one.files == []
    assert keys(phase_one.waiting) == given_up
    assert all(store.get(key) for key in given_up)
    with pytest.raises(FileNotFoundError):
        publish.read_commit(store, 1)

    assert keys(written.vacuum().waiting) == given_up
    assert len(read_notes(store)) == 1
    time.sleep(OLD)
    assert keys(written.vacuum().files) == given_up
    left = {k for r in (new, stays) for k in (*files_of(r), records.record_key("g1", r.piece))}
    assert written.keys() == left | {second.manifest, publish.commit_key(2), "_runs/run2/report.json"}
    assert read_notes(store) == []
    assert store.list("_attempts") == []
    assert written.vacuum() == Found()
    assert publish.manifest_records(store, publish.read_commit(store, 2)) == sorted([new, stays], key=lambda r: r.shard)


def test_within_the_grace_nothing_goes(written: Written) -> None:
    written.commit(written.record("a"))
    written.commit(written.record("a", "v2"))
    written.record("c")
    before = written.keys()
    assert written.vacuum(grace=3600.0) == Found()
    assert written.keys() == before


def test_a_run_that_slept_longer_than_the_grace_publishes_nothing(written: Written) -> None:
    held = written.record("a")
    written.commit(written.record("b"))
    time.sleep(OLD)
    assert keys(written.vacuum().records) == {records.record_key("g1", held.piece)}
    with pytest.raises(Incomplete, match="were given up by `tidemill vacuum`"):
        written.commit(held)
    time.sleep(OLD)
    written.vacuum()
    with pytest.raises(Incomplete, match="2 files"):
        written.commit(held)
    again = written.record("a", attempt="2")
    assert written.commit(again).version == 2


def test_a_record_whose_files_are_gone_is_cleared(written: Written) -> None:
    broken = written.record("a")
    written.commit(written.record("b"))
    for key in files_of(broken):
        written.store.delete(key)
    time.sleep(1.1)
    assert keys(written.vacuum(grace=3600.0).records) == {records.record_key("g1", broken.piece)}


def test_a_generation_in_the_making_keeps_its_records(written: Written) -> None:
    written.commit(written.record("a"))
    early = written.record("a", generation="g2")
    time.sleep(OLD)
    written.record("b", generation="g2")
    assert written.vacuum().records == []
    assert records.read_record(written.store, "g2", early.piece) == early


def test_files_of_others_stay(written: Written) -> None:
    written.commit(written.record("a"))
    foreign = ("_delta_log/00000000000000000000.json", "lance/data/x.lance", "README.md", "data.txt")
    for key in foreign:
        written.store.put(key, b"x")
    time.sleep(OLD)
    written.vacuum()
    assert all(written.store.get(key) for key in foreign)


def test_a_note_that_names_what_it_must_not_removes_nothing(written: Written) -> None:
    written.commit(written.record("a"))
    written.store.put("_vacuum/evil.json", b'[{"key": "data/../../other/file", "size": 1, "modified": 0}]')
    before = written.keys()
    with pytest.raises(TidemillError, match=r"_vacuum/evil\.json is not a note"):
        vacuum.vacuum(written.store, Rules(1, 0), act=True)
    assert written.keys() == before


def test_temporary_files_of_killed_writers_go(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path))
    names = [".0123456789abcdef0123456789abcdef.tmp", ".fedcba9876543210fedcba9876543210.tmp", ".vimrc.tmp"]
    folder = tmp_path / "data" / "g1"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"half")
    other = tmp_path / "lance" / names[0]
    other.parent.mkdir()
    other.write_bytes(b"of others")
    os.utime(folder / names[0], (1, 1))
    os.utime(folder / names[2], (1, 1))
    assert keys(vacuum.vacuum(store, Rules(), act=True).unfinished) == {f"data/g1/{names[0]}"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[1:])
    assert other.exists()


def test_uploads_of_killed_writers_are_aborted(request: pytest.FixtureRequest) -> None:
    server, url = request.getfixturevalue("s3_server"), request.getfixturevalue("s3_url")()
    store = open_store(url, server.storage_options)
    client, bucket = boto3.client("s3", endpoint_url=server.endpoint_url), url.split("/")[2]
    for key in ("table/data/g1/killed.parquet", "table/lance/others", "elsewhere"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    assert keys(unfinished(store)) == {"data/g1/killed.parquet"}
    assert keys(vacuum.vacuum(store, Rules(), act=False).unfinished) == {"data/g1/killed.parquet"}
    vacuum.vacuum(store, Rules(), act=True)
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert {upload["Key"] for upload in left} == {"table/lance/others", "elsewhere"}


def test_the_clock_is_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + 10**6)
    assert abs(vacuum.store_time(FileStore(str(tmp_path))) - real) < 60


@pytest.mark.parametrize("rules", [Rules(0), Rules(1, -1.0)])
def test_rules_that_keep_nothing_are_refused(tmp_path: Path, rules: Rules) -> None:
    with pytest.raises(ConfigError, match="keep at least one version"):
        vacuum.vacuum(FileStore(str(tmp_path)), rules, act=True)


def test_a_damaged_head_removes_nothing(written: Written) -> None:
    first = written.commit(written.record("a"))
    second = written.commit(replace(written.record("a", "v2")))
    written.store.delete(second.manifest)
    before = written.keys()
    with pytest.raises(TidemillError, match="the newest version, 2, is damaged"):
        vacuum.vacuum(written.store, Rules(1, 0), act=True)
    assert written.keys() == before
    assert first.manifest in before
