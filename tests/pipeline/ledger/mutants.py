"""Mutants of vacuum, each with one rule broken."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from pipeline.ledger import notes, publish, records, vacuum
from pipeline.ledger.store import Entry, Store
from pipeline.ledger.vacuum import Found, Table
from tests.pipeline.ledger.judge import GRACE
from tests.pipeline.ledger.simulator import Client


def no_grace(patch: pytest.MonkeyPatch) -> None:
    """Whatever nothing names goes, however young."""
    original = vacuum.vacuum
    patch.setattr(vacuum, "vacuum", lambda store, rules, *, act: original(store, replace(rules, grace=0), act=act))


def the_machine_tells_the_time(patch: pytest.MonkeyPatch) -> None:
    """The clock of the machine, which goes ahead of the store's."""
    original = vacuum.store_time
    patch.setattr(vacuum, "store_time", lambda store: original(store) + 2 * GRACE)


def one_phase(patch: pytest.MonkeyPatch) -> None:
    """What nothing names goes at once instead of a grace later."""
    patch.setattr(notes, "write_note", lambda store, files: store.delete_many([file.key for file in files]))


def records_are_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Only versions keep files."""
    original = Table.named
    patch.setattr(Table, "named", lambda self, first, records: original(self, first, ()))


def versions_are_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Only records keep files."""
    patch.setattr(Table, "named", lambda self, first, records: {key for r in records for key in self.holds[r]})


def old_versions_are_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Only the newest version keeps files."""
    original = Table.named
    patch.setattr(Table, "named", lambda self, first, records: original(self, max(self.made, default=0), records))


def files_go_before_their_record(patch: pytest.MonkeyPatch) -> None:
    """A record that is to be removed names files that are gone; and a run that has read it does."""

    def delete(store: Store, keys: list[str]) -> None:
        for key, data in store.find_many([key for key in keys if key.startswith("_records/")]).items():
            original(store, notes.files_of(records.from_json(data, key)))
        original(store, keys)

    original = vacuum._delete
    patch.setattr(vacuum, "_delete", delete)


def the_newest_version_goes(patch: pytest.MonkeyPatch) -> None:
    """No version is kept."""
    patch.setattr(vacuum, "first_kept", lambda table, keep, limit: max(table.made, default=0) + 1)


def versions_go_as_they_end(patch: pytest.MonkeyPatch) -> None:
    """A version goes though it was the newest a moment ago."""
    original = vacuum.first_kept
    patch.setattr(vacuum, "first_kept", lambda table, keep, limit: original(table, keep, table.now))


def young_records_are_stale(patch: pytest.MonkeyPatch) -> None:
    """A record goes as soon as no version has it."""
    original = vacuum.stale_records
    patch.setattr(vacuum, "stale_records", lambda table, first, limit: original(table, first, table.now))


def notes_are_trusted(patch: pytest.MonkeyPatch) -> None:
    """Files of an old note go, though something names them again."""

    def sweep(
        store: Store, table: Table, written: list[notes.Note], limit: float, found: Found, *, act: bool
    ) -> dict[str, Entry]:
        return original(store, replace(table, last={}, holds={}), written, limit, found, act=act)

    original = vacuum.sweep
    patch.setattr(vacuum, "sweep", sweep)


def young_notes_are_swept(patch: pytest.MonkeyPatch) -> None:
    """The grace of the second phase is left out."""

    def sweep(
        store: Store, table: Table, written: list[notes.Note], limit: float, found: Found, *, act: bool
    ) -> dict[str, Entry]:
        return original(store, table, written, table.now, found, act=act)

    original = vacuum.sweep
    patch.setattr(vacuum, "sweep", sweep)


def young_files_are_noted_and_swept(patch: pytest.MonkeyPatch) -> None:
    """A vacuum that stands in no relation to writers: their files have no record yet."""

    def unnamed(table: Table, first: int, kept: Collection[str], limit: float) -> list[Entry]:
        return original(table, first, kept, table.now)

    original = vacuum.unnamed_files
    young_notes_are_swept(patch)
    patch.setattr(vacuum, "unnamed_files", unnamed)


def runs_do_not_look(patch: pytest.MonkeyPatch) -> None:
    """A run that took longer than the grace publishes files that are gone."""
    patch.setattr(publish, "check_files", lambda store, records: None)


def a_run_vacuums(patch: pytest.MonkeyPatch) -> None:
    """A run removes something by itself."""
    original = Client.list

    def listed(client: Client, prefix: str) -> list[str]:
        keys = original(client, prefix)
        if prefix == "_commits" and len(keys) > 1:
            client.delete(keys[0])
        return keys

    patch.setattr(Client, "list", listed)


OF_VACUUM = [
    no_grace,
    the_machine_tells_the_time,
    one_phase,
    records_are_not_asked,
    versions_are_not_asked,
    old_versions_are_not_asked,
    files_go_before_their_record,
    the_newest_version_goes,
    versions_go_as_they_end,
    young_records_are_stale,
    notes_are_trusted,
    young_notes_are_swept,
    young_files_are_noted_and_swept,
    runs_do_not_look,
    a_run_vacuums,
]
