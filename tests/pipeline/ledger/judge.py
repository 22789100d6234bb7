"""What every commit and every removal must keep, whatever happened before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pipeline.ledger import publish, records
from pipeline.ledger.publish import Commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import Store
from tests.pipeline.ledger.fake_engine import is_bad

if TYPE_CHECKING:
    from tests.pipeline.ledger.simulator import Disk

GRACE = 3000
"""Of every vacuum, in ticks of the store's clock: longer than a night's runs and readers."""


class Violation(AssertionError):
    """The protocol broke a promise."""


class _Quiet:
    """Reads what is stored; asks no one."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def get(self, key: str) -> bytes:
        if key not in self._objects:
            raise FileNotFoundError(key)
        return self._objects[key]


def _quiet(disk: Disk) -> Store:
    return cast(Any, _Quiet(disk.objects))


def commit(disk: Disk, key: str) -> None:
    """Raise Violation unless the commit that just appeared keeps every promise."""
    try:
        _commit(disk, publish.read_commit(_quiet(disk), _version(key)))
    except (AssertionError, FileNotFoundError, KeyError) as error:
        raise Violation(f"{key}: {error!r}") from error


def removal(disk: Disk, key: str) -> None:
    """Raise Violation unless nobody can need the object that is to be removed."""
    try:
        _removal(disk, key)
    except (AssertionError, FileNotFoundError, KeyError) as error:
        raise Violation(f"removal of {key}: {error!r}") from error


def _version(key: str) -> int:
    return int(key.removeprefix("_commits/").removesuffix(".json"))


def _commit(disk: Disk, new: Commit) -> None:
    quiet, version = _quiet(disk), new.version
    table = publish.manifest_records(quiet, new)
    disk.tables[version] = table
    before = publish.read_commit(quiet, version - 1) if version > 1 else None
    assert new.run_id not in disk.published, "one run published twice"
    disk.published[new.run_id] = version
    assert new.parent == (publish.fingerprint_of(quiet, before) if before else None), "parent"
    _rows(disk, quiet, table, new.generation)
    assert new.totals["rows_in"] == new.totals["rows_out"] + sum(new.totals["quarantined"].values()), "totals"
    if new.restores:
        assert table == disk.tables[new.restores], "not the version that was to come back"
        return
    job, base = disk.runs[new.run_id]
    assert new.generation == job.generation, "generation"
    if before and before.generation != new.generation:
        assert base == version - 1, "a generation was switched by a run that had not seen the one before"
    shards = {r.shard for r in table}
    if before and before.generation == new.generation and job.keep_removed:
        assert shards >= {r.shard for r in publish.manifest_records(quiet, before)}, "shards went missing"
    assert shards >= set(job.inputs) if job.keep_removed else shards == set(job.inputs), "not the run's input"


def _rows(disk: Disk, quiet: Store, table: list[Record], generation: str) -> None:
    """Every row of every shard exactly once, out or in quarantine, all of one generation, as the records say."""
    sources = {(key, s.version): s for job, _ in disk.runs.values() for key, s in job.inputs.items()}
    seen: dict[str, list[int]] = {}
    versions: dict[str, set[str]] = {}
    for record in table:
        if records.record_key(generation, record.piece) not in disk.removed_records:
            assert records.read_record(quiet, generation, record.piece) == record, "the manifest does not hold the piece's record"
        rows = seen.setdefault(record.shard, [])
        versions.setdefault(record.shard, set()).add(record.version)
        for name in filter(None, (record.file, record.quarantine_file)):
            content_generation, *content = json.loads(quiet.get(name))
            assert content_generation == generation, "mixed generations"
            assert all(is_bad(record.shard, record.version, row) == (name == record.quarantine_file) for row in content), (
                "wrong file"
            )
            rows += content
    for shard, rows in seen.items():
        assert len(versions[shard]) == 1, f"two versions of {shard}"
        source = sources[shard, versions[shard].pop()]
        assert sorted(rows) == list(range(source.rows)), f"rows of {shard}: {sorted(rows)}"


def _removal(disk: Disk, key: str) -> None:
    now = disk.requests
    commits = {_version(k): k for k in disk.objects if k.startswith("_commits/")}
    if key.startswith("_commits/"):
        later = [version for version in commits if version > _version(key)]
        assert later, "the newest version"
        assert disk.times[commits[min(later)]] <= now - disk.grace, "a version that was the newest less than a grace ago"
        disk.dropped.append((now, _named(disk, _version(key))))
        return
    assert not any(key in _named(disk, version) for version in commits), "a version names it"
    assert not any(now - when < disk.grace and key in named for when, named in disk.dropped), "somebody may still read it"
    if key.startswith("_records/"):
        disk.removed_records.add(key)
        record = records.from_json(disk.objects[key], key)
        broken = any(name not in disk.objects for name in (record.file, record.quarantine_file) if name)
        assert broken or disk.times[key] <= now - disk.grace, "a record that a run may have read"
    elif key.startswith(("data/", "quarantine/")):
        for name in [k for k in disk.objects if k.startswith("_records/")]:
            record = records.from_json(disk.objects[name], name)
            slept = disk.times[name] - disk.times[key] >= disk.grace  # for longer than is promised to anyone
            assert slept or key not in (record.file, record.quarantine_file), f"{name} names it"


def _named(disk: Disk, version: int) -> set[str]:
    """The manifest and the files of a version."""
    named = {publish.read_commit(_quiet(disk), version).manifest}
    return named | {key for r in disk.tables[version] for key in (r.file, r.quarantine_file) if key}
