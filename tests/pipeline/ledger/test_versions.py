"""History and rollback: what each version changed, and that the way back is a commit like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, Fenced, TidemillError
from pipeline.ledger import publish as publishing
from pipeline.ledger.pieces import Span
from pipeline.ledger.publish import Commit, Draft, commit_key, encode_schema, head, manifest_records, read_commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import Exists, FileStore, Unknown
from pipeline.ledger.versions import Change, history, rollback

Publish = Callable[..., Commit]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path))


@pytest.fixture
def publish(store: FileStore, make_span: Callable[..., Span], make_record: Callable[..., Record]) -> Publish:
    """Publishes shards ("name" or "name@version") with their files; `base`: as the run saw it, the head by default."""

    def make(shards: str, generation: str = "g1", base: int | None = None, keep: bool = False) -> Commit:
        named = [(*name.split("@"), "v1")[:2] for name in shards.split()]
        spans = [make_span(name, version=version) for name, version in named]
        records = [make_record(span, generation=generation) for span in spans]
        for key in [k for r in records for k in (r.file, r.quarantine_file) if k]:
            store.put(key, b"rows")
        newest = head(store)
        draft = Draft(
            run_id=f"run of {shards}",
            generation=generation,
            fingerprint={"generation": generation},
            pins={},
            schema=encode_schema(pa.schema([])),
            records=records,
            shards=frozenset(s.shard.key for s in spans),
            keep_removed=keep,
            base=base if base is not None else newest.version if newest else 0,
        )
        return publishing.publish(store, draft, count_duplicates=lambda _: 0, pause=lambda _: None)

    return make


def _history(store: FileStore, last: int | None = None) -> list[Change]:
    newest = head(store)
    assert newest is not None
    return list(history(store, newest, last))


def test_history_says_what_each_version_changed(store: FileStore, publish: Publish) -> None:
    for shards, generation in [("a b", "g1"), ("a b@v2 c", "g1"), ("a c", "g1"), ("a c", "g2")]:
        publish(shards, generation)
    rollback(store, 2)
    found = [(c.version, c.kind, c.restores, c.added, c.changed, c.removed) for c in _history(store)]
    assert found == [
        (1, "first", None, ["a", "b"], [], []),
        (2, "append", None, ["c"], ["b"], []),
        (3, "append", None, [], [], ["b"]),
        (4, "switch", None, [], ["a", "c"], []),
        (5, "rollback", 2, ["b"], ["a", "c"], []),
    ]
    assert [(c.rows_in, c.rows_out, c.quarantined, c.pieces) for c in _history(store)][:2] == [(20, 16, 4, 2), (30, 24, 6, 3)]
    assert _history(store, last=2) == _history(store)[-2:]
    assert _history(store, last=99) == _history(store)


def test_history_goes_on_over_versions_that_were_removed(store: FileStore, publish: Publish) -> None:
    for shards in ("a", "a b", "a b c"):
        publish(shards)
    store.delete(read_commit(store, 1).manifest)
    store.delete(commit_key(1))
    found = _history(store)
    assert [(c.version, c.kind, c.added) for c in found] == [(2, "unknown", None), (3, "append", ["c"])]
    store.delete(read_commit(store, 2).manifest)
    assert [(c.version, c.added) for c in _history(store)] == [(2, None), (3, None)]


def test_a_rollback_is_one_more_commit_with_the_old_manifest(store: FileStore, publish: Publish) -> None:
    first, second = publish("a b", "g1"), publish("a", "g2")
    before = {key: store.get(key) for key in store.list("")}
    back = rollback(store, 1)
    assert (back.version, back.restores, back.generation, back.manifest) == (3, 1, "g1", first.manifest)
    assert (back.totals, back.schema, back.pins, back.fingerprint) == (first.totals, first.schema, first.pins, first.fingerprint)
    assert back.parent == hashlib.sha256(store.get(commit_key(2))).hexdigest()
    assert back.commit_id not in (first.commit_id, second.commit_id)
    assert head(store) == back
    assert {key: store.get(key) for key in before} == before
    assert set(store.list("")) - set(before) == {commit_key(3)}

    again = rollback(store, 2)
    assert (again.version, again.generation, manifest_records(store, again)) == (4, "g2", manifest_records(store, second))
    assert rollback(store, 2) == again == head(store)


@pytest.mark.parametrize("to", [0, 3, -1])
def test_a_version_that_never_was_is_refused(store: FileStore, publish: Publish, to: int) -> None:
    publish("a")
    publish("b")
    with pytest.raises(ConfigError, match=f"--to: there is no version {to}; the table has 1 to 2"):
        rollback(store, to)


@pytest.mark.parametrize("which", ["file", "quarantine_file"])
def test_a_version_whose_files_are_gone_is_refused(store: FileStore, publish: Publish, which: str) -> None:
    gone = getattr(manifest_records(store, publish("a b"))[0], which)
    publish("b")
    store.delete(gone)
    with pytest.raises(ConfigError, match=f"1 files of version 1 are gone, the first is {gone}"):
        rollback(store, 1)
    store.delete(read_commit(store, 1).manifest)
    with pytest.raises(ConfigError, match="version 1 was removed"):
        rollback(store, 1)
    newest = head(store)
    assert newest is not None
    assert newest.version == 2


def test_a_table_without_versions_is_refused(store: FileStore) -> None:
    with pytest.raises(ConfigError, match="nothing was committed"):
        rollback(store, 1)


def test_a_run_of_another_generation_is_fenced_by_a_rollback(store: FileStore, publish: Publish) -> None:
    publish("a", "g1")
    publish("a", "g2")
    rollback(store, 1)
    with pytest.raises(Fenced, match="version 3 of generation g1"):
        publish("a b", "g2", base=2)
    assert publish("a b", "g1", base=2).version == 4  # its own generation goes on from there


def test_a_run_after_a_rollback_publishes_again_what_is_recorded(store: FileStore, publish: Publish) -> None:
    publish("a")
    bad = publish("a@v2 b")
    rollback(store, 1)
    after = publish("a@v2 b")
    assert (after.version, after.restores) == (4, None)
    assert manifest_records(store, after) == manifest_records(store, bad)


class Interrupted(FileStore):
    """Does something of its own at the first create."""

    def meanwhile(self, what: Callable[[str, bytes], None]) -> None:
        object.__setattr__(self, "_what", what)

    def create(self, key: str, data: bytes) -> None:
        what: Any = self.__dict__.pop("_what", None)
        if what:
            what(key, data)
        super().create(key, data)


def test_a_commit_that_comes_between_is_not_undone(store: FileStore, publish: Publish) -> None:
    publish("a")
    publish("a b")
    interrupted = Interrupted(store.root)
    interrupted.meanwhile(lambda *_: publish("a b c") and None)
    with pytest.raises(Fenced, match="version 3 was committed while the table was rolled back"):
        rollback(interrupted, 1)
    newest = head(store)
    assert newest is not None
    assert (newest.version, newest.restores) == (3, None)


@pytest.mark.parametrize("written", [True, False])
def test_a_commit_without_an_answer_is_looked_up(store: FileStore, publish: Publish, written: bool) -> None:
    publish("a")
    publish("a b")

    def no_answer(key: str, data: bytes) -> None:
        if written:
            store.create(key, data)
        raise Unknown("timeout")

    interrupted = Interrupted(store.root)
    interrupted.meanwhile(no_answer)
    assert rollback(interrupted, 1) == head(store)
    assert [c.version for c in _history(store)] == [1, 2, 3]


def test_a_store_that_never_answers_is_given_up(store: FileStore, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("a")
    publish("b")

    def lose(self: FileStore, key: str, data: bytes) -> None:
        raise Exists(key)

    monkeypatch.setattr(FileStore, "create", lose)
    with pytest.raises(TidemillError, match="the store gave no answer"):
        rollback(store, 1)
