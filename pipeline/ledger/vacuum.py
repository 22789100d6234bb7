"""Vacuum: removes what no reader and no run can need any more, in two phases that lie a whole grace apart.

A run may have read a record or a version long before it publishes what that names. Therefore a file does not go when nothing
names it any more, but a grace later:

    1 sweep   of the notes older than the grace, the files that still nothing names go; then the note
    2 drop    old versions, and records that nobody has published or will publish
    3 note    old files that nothing names are written down in `_vacuum/<uuid>.json`, for a later vacuum to sweep

"Old" means older than the grace, all by the store's own clock. So whoever began less than a grace ago finds every file that
it may name; who takes longer finds out before it publishes (`notes.check_files`). Each step may be cut off anywhere, and two
vacuums may run at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

from pipeline.errors import ConfigError, TidemillError
from pipeline.ledger import leftovers, notes
from pipeline.ledger.publish import COMMIT_KEY, commit_key, manifest_records, read_commit
from pipeline.ledger.records import from_json, record_key
from pipeline.ledger.store import Entry, Store

_BATCH = 1000
"""Records that are fetched, or objects that are removed, at a time."""


@dataclass(frozen=True)
class Rules:
    """What is kept."""

    versions: int = 10
    """The newest versions, at least one."""
    grace: float = 7 * 86400.0
    """Seconds; longer than any run, any reader and any vacuum. 0 where none of them is at work."""


@dataclass
class Found:
    """What goes (or would go) now, and what waits for a later vacuum."""

    versions: list[int] = field(default_factory=list)
    records: list[Entry] = field(default_factory=list)
    files: list[Entry] = field(default_factory=list)
    """Data, quarantine and manifests."""
    unfinished: list[Entry] = field(default_factory=list)
    """Temporary files and multipart uploads of killed writers."""
    others: list[Entry] = field(default_factory=list)
    """Of `_runs`, `_attempts`, `_probe`."""
    waiting: list[Entry] = field(default_factory=list)
    """Files that nothing names, noted now or before."""


@dataclass
class Table:
    """The table as it is when the vacuum begins; holds keys, not records."""

    now: float
    made: dict[int, float] = field(default_factory=dict)
    """Version -> when it was committed, oldest first."""
    runs: dict[int, str] = field(default_factory=dict)
    """Version -> the run that made it."""
    last: dict[str, int] = field(default_factory=dict)
    """File, manifest or record -> the newest version that has it."""
    ages: dict[str, Entry] = field(default_factory=dict)
    """The records' objects."""
    holds: dict[str, list[str]] = field(default_factory=dict)
    """Record -> its files."""
    files: dict[str, Entry] = field(default_factory=dict)
    """All data, quarantine and manifests; listed last, so that every record's files are among them."""

    def named(self, first: int, records: Collection[str]) -> set[str]:
        """Files and manifests that the versions from `first` on and `records` name."""
        return {key for key, version in self.last.items() if version >= first} | {k for r in records for k in self.holds[r]}


def vacuum(store: Store, rules: Rules, *, act: bool) -> Found:
    """What goes from the table in `store`; without `act` nothing is written but a probe of the store's clock.

    ConfigError for rules that would drop the newest version. TidemillError where a commit, manifest, record or note cannot be
    read: then nothing is removed, since nothing is known.
    """
    if rules.versions < 1 or rules.grace < 0:
        raise ConfigError(f"keep at least one version, not {rules.versions}, and a grace of 0 or more, not {rules.grace:g} s")
    table = look(store)
    limit = table.now - rules.grace
    # After the look: who noted a file before a version named it is then known to have done so.
    written = notes.read_notes(store)
    found = Found()
    waiting = sweep(store, table, written, limit, found, act=act)
    first = first_kept(table, rules.versions, limit)
    found.versions = [version for version in table.made if version < first]
    gone = stale_records(table, first, limit)
    found.records = [table.ages[key] for key in sorted(gone)]
    if act:
        _delete(store, [commit_key(version) for version in found.versions])
        _delete(store, sorted(gone))
    unnamed = unnamed_files(table, first, table.holds.keys() - gone, limit)
    known = waiting.keys() | {entry.key for entry in found.files}
    new = [entry for entry in unnamed if entry.key not in known]
    found.waiting = [*waiting.values(), *new]
    if act and new:
        notes.write_note(store, new)
    _drop_leftovers(store, table, first, limit, found, act=act)
    return found


def look(store: Store) -> Table:
    """Read commits, manifests and records, in an order in which nothing that is written meanwhile looks unnamed."""
    table = Table(store_time(store))
    made = {int(match[1]): e.modified for e in store.entries("_commits") if (match := COMMIT_KEY.fullmatch(e.key))}
    for version in sorted(made):
        try:
            commit = read_commit(store, version)
            for record in manifest_records(store, commit):
                for key in (record_key(record.generation, record.piece), *notes.files_of(record)):
                    table.last[key] = version
        except FileNotFoundError as error:
            if version == max(made):
                raise TidemillError(f"{error}: the newest version, {version}, is damaged; restore it from a backup") from None
            continue  # another vacuum drops it
        table.made[version], table.runs[version], table.last[commit.manifest] = made[version], commit.run_id, version
    table.ages = {entry.key: entry for entry in store.entries("_records")}
    keys = list(table.ages)
    for start in range(0, len(keys), _BATCH):
        for key, data in store.find_many(keys[start : start + _BATCH]).items():
            table.holds[key] = notes.files_of(from_json(data, key))
    table.files = {entry.key: entry for folder in notes.FILES for entry in store.entries(folder)}
    return table


def store_time(store: Store) -> float:
    """Now, by the clock that stamps the store's objects, in seconds since 1970."""
    key = f"_probe/{uuid.uuid4().hex}"
    store.put(key, b"time")
    now = next(entry.modified for entry in store.entries("_probe") if entry.key == key)
    store.delete(key)
    return now


def sweep(store: Store, table: Table, written: list[notes.Note], limit: float, found: Found, *, act: bool) -> dict[str, Entry]:
    """Remove the files of old notes; returns those whose grace still runs."""
    named = table.named(0, table.holds)
    waiting: dict[str, Entry] = {}
    going: dict[str, Entry] = {}
    for note in written:
        unnamed = [entry for entry in note.files if entry.key not in named]
        if note.entry.modified <= limit:
            going |= {entry.key: entry for entry in unnamed if entry.key in table.files}
            if act:
                _delete(store, [entry.key for entry in unnamed])
                store.delete(note.entry.key)
        elif len(unnamed) == len(note.files):
            waiting |= {entry.key: entry for entry in unnamed}
        elif act:
            # A file that is named again has its life back: given up once more, it gets a whole new grace.
            store.delete(note.entry.key)
    found.files = list(going.values())
    return {key: entry for key, entry in waiting.items() if key not in going}


def first_kept(table: Table, keep: int, limit: float) -> int:
    """The oldest version that stays: one of the newest `keep`, or the newest one itself until less than a grace ago."""
    versions = list(table.made)
    for version, after in pairwise(versions):
        if version in versions[-keep:] or table.made[after] > limit:
            return version
    return versions[-1] if versions else 0


def stale_records(table: Table, first: int, limit: float) -> set[str]:
    """Old records that no kept version has, and records whose files are gone.

    Kept as well are all records of a generation that no version has yet, while it still gets new ones: a run is at work on it,
    for longer than the grace perhaps.
    """
    published = {key.split("/")[1] for key in table.last if key.startswith("_records/")}
    in_the_making = {e.key.split("/")[1] for e in table.ages.values() if e.modified > limit} - published
    stale = set()
    for key, files in table.holds.items():
        if table.last.get(key, 0) >= first > 0:
            continue
        old = table.ages[key].modified <= limit and key.split("/")[1] not in in_the_making
        # Younger than the look: its files may have come after they were listed.
        broken = table.ages[key].modified < table.now and not table.files.keys() >= set(files)
        if old or broken:
            stale.add(key)
    return stale


def unnamed_files(table: Table, first: int, records: Collection[str], limit: float) -> list[Entry]:
    """Old files that neither the versions from `first` on nor `records` name."""
    named = table.named(first, records)
    return [entry for entry in table.files.values() if entry.key not in named and entry.modified <= limit]


def _drop_leftovers(store: Store, table: Table, first: int, limit: float, found: Found, *, act: bool) -> None:
    """Remove what runs left for themselves; what the runs of kept versions reported stays."""
    reported = {run for version, run in table.runs.items() if version >= first}
    entries = store.entries("_runs")
    newest: dict[str, float] = {}
    for entry in entries:
        run = entry.key.split("/")[1]
        newest[run] = max(newest.get(run, 0), entry.modified)
    found.others = [e for e in entries if newest[e.key.split("/")[1]] <= limit and e.key.split("/")[1] not in reported]
    found.others += [entry for folder in ("_attempts", "_probe") for entry in store.entries(folder) if entry.modified <= limit]
    found.unfinished = [entry for entry in leftovers.unfinished(store) if entry.modified <= limit]
    if act:
        _delete(store, [entry.key for entry in found.others])
        leftovers.discard(store, found.unfinished)


def _delete(store: Store, keys: list[str]) -> None:
    for start in range(0, len(keys), _BATCH):
        store.delete_many(keys[start : start + _BATCH])
