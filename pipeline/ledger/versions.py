"""What became of a table, version by version, and the way back to an older one.

A rollback is a commit like any other: version N + 1 names the manifest of the older version. Nothing is rewritten, readers
switch in one step, and the rollback can be rolled back.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline.errors import ConfigError, Fenced, TidemillError
from pipeline.ledger.publish import ATTEMPTS, Commit, find_own, fingerprint_of, head, manifest_records, read_commit, write_commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import Store


@dataclass(frozen=True)
class Change:
    """One version, and what it changed."""

    version: int
    created_at: str
    """UTC, by the clock of the machine that committed; informational."""
    run_id: str
    generation: str
    kind: str
    """`first`; `append`: the generation of the version before; `switch`: another one; `rollback`; `unknown`: the
    version before was removed."""
    restores: int | None
    rows_in: int
    rows_out: int
    quarantined: int
    pieces: int
    added: list[str] | None
    """Shards that the version before does not have. None where one of the two manifests is gone."""
    changed: list[str] | None
    """Shards that it has in another state: another version of the shard, or encoded by another generation."""
    removed: list[str] | None
    """Shards that only the version before has."""


def history(store: Store, newest: Commit, last: int | None = None) -> Iterator[Change]:
    """The versions up to `newest`, oldest first; only the `last` ones where given. Those that were removed are left out.

    Reads each version's commit and manifest; holds two of them."""
    first = 1 if last is None else max(1, newest.version - last + 1)
    before, held = _read(store, first - 1)
    for version in range(first, newest.version + 1):
        commit, shards = (newest, _shards(store, newest)) if version == newest.version else _read(store, version)
        if commit is not None:
            yield _change(commit, shards, before, held)
        before, held = commit, shards


def _read(store: Store, version: int) -> tuple[Commit | None, dict[str, frozenset[str]] | None]:
    if version < 1:
        return None, {}
    try:
        commit = read_commit(store, version)
    except FileNotFoundError:
        return None, None
    return commit, _shards(store, commit)


def _shards(store: Store, commit: Commit) -> dict[str, frozenset[str]] | None:
    """Shard -> ids of its pieces in a version, with their generation; None where the manifest is gone."""
    try:
        records = manifest_records(store, commit)
    except FileNotFoundError:
        return None
    shards: dict[str, set[str]] = {}
    for record in records:
        shards.setdefault(record.shard, set()).add(f"{record.generation}/{record.piece}")
    return {shard: frozenset(pieces) for shard, pieces in shards.items()}


def _change(
    commit: Commit,
    shards: dict[str, frozenset[str]] | None,
    before: Commit | None,
    held: dict[str, frozenset[str]] | None,
) -> Change:
    if commit.restores is not None:
        kind = "rollback"
    elif before is None:
        kind = "first" if commit.version == 1 else "unknown"
    else:
        kind = "append" if before.generation == commit.generation else "switch"
    known = shards is not None and held is not None
    now, then = shards or {}, held or {}
    return Change(
        version=commit.version,
        created_at=commit.created_at,
        run_id=commit.run_id,
        generation=commit.generation,
        kind=kind,
        restores=commit.restores,
        rows_in=commit.totals["rows_in"],
        rows_out=commit.totals["rows_out"],
        quarantined=sum(commit.totals["quarantined"].values()),
        pieces=commit.totals["pieces"],
        added=sorted(now.keys() - then.keys()) if known else None,
        changed=sorted(s for s in now.keys() & then.keys() if now[s] != then[s]) if known else None,
        removed=sorted(then.keys() - now.keys()) if known else None,
    )


def rollback(store: Store, to: int) -> Commit:
    """Make version `to` the table's content again, by a new commit; the head itself where it has that content already.

    ConfigError where the version does not exist or files of it are gone. Fenced where another run commits meanwhile: what it
    brought would be undone unseen. TidemillError where the store gives no answer again and again.
    """
    newest = head(store)
    if newest is None:
        raise ConfigError("nothing was committed there; give the output.path of a job that has run", field="output")
    commit_id = uuid.uuid4().hex
    for _ in range(ATTEMPTS):
        current = head(store)
        own = find_own(store, commit_id, newest.version, current)
        if own:
            return own
        if current is None or current.version != newest.version:
            raise Fenced(
                f"version {current.version if current else 'none'} was committed while the table was rolled back; nothing was "
                "changed. See `tidemill history`, then roll back again if it shall go too"
            )
        old = _restorable(store, newest, to)
        if old.manifest == newest.manifest:
            return newest
        if write_commit(store, _restoring(store, newest, old, commit_id)):
            return read_commit(store, newest.version + 1)
    raise TidemillError(f"{ATTEMPTS} times the store gave no answer to the commit; roll back again, nothing is lost")


def _restoring(store: Store, newest: Commit, old: Commit, commit_id: str) -> Commit:
    """The commit after `newest` with the content of `old`; which table format follows is as it is now."""
    follows = {name: value for name, value in newest.pins.items() if name == "format"}
    return replace(
        old,
        pins={**{name: value for name, value in old.pins.items() if name != "format"}, **follows},
        version=newest.version + 1,
        parent=fingerprint_of(store, newest),
        commit_id=commit_id,
        run_id=commit_id[:16],
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        restores=old.version,
    )


def _restorable(store: Store, newest: Commit, to: int) -> Commit:
    """Version `to`, if all its files are there."""
    field = "--to"
    if not 1 <= to <= newest.version:
        raise ConfigError(f"there is no version {to}; the table has 1 to {newest.version}", field=field)
    try:
        old = read_commit(store, to)
        records = manifest_records(store, old)
    except FileNotFoundError:
        raise ConfigError(f"version {to} was removed; see `tidemill history` for those that are left", field=field) from None
    gone = missing_files(store, records)
    if gone:
        raise ConfigError(
            f"{len(gone)} files of version {to} are gone, the first is {gone[0]}; they were removed as too old. See `tidemill "
            "history` for other versions, or run that version's job again",
            field=field,
        )
    return old


def missing_files(store: Store, records: list[Record]) -> list[str]:
    """Keys of data and quarantine files that records name and the store does not have; lists each generation's folders."""
    wanted = {key for record in records for key in (record.file, record.quarantine_file) if key is not None}
    folders = {key.rsplit("/", 1)[0] for key in wanted}
    return sorted(wanted - {key for folder in folders for key in store.list(folder)})
