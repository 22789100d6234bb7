"""Notes of a vacuum: files that nothing names any more, in `_vacuum/<uuid>.json`. They go at a vacuum a whole grace later.

A run that is about to publish reads the notes too, and lets go of files that were given up while it held their records.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import Incomplete, TidemillError
from pipeline.ledger.records import Record, from_json, record_key
from pipeline.ledger.store import Entry, Store

FILES = ("data", "quarantine", "_manifests")
"""Folders of what records and commits name, and the only ones whose objects are ever noted."""

_FOLDER = "_vacuum"
_NOTE = TypeAdapter(list[Entry])


@dataclass(frozen=True)
class Note:
    """What one vacuum wrote down."""

    entry: Entry
    """The note's own object."""
    files: list[Entry]


def write_note(store: Store, files: Sequence[Entry]) -> None:
    """Write down `files`; the store's time of the note is when their grace begins."""
    store.put(f"{_FOLDER}/{uuid.uuid4().hex}.json", _NOTE.dump_json(list(files)))


def read_notes(store: Store) -> list[Note]:
    """All notes. TidemillError where one names what no vacuum writes down."""
    entries = store.entries(_FOLDER)
    found = store.find_many([entry.key for entry in entries])
    return [Note(entry, _parse(entry.key, found[entry.key])) for entry in entries if entry.key in found]


def _parse(key: str, data: bytes) -> list[Entry]:
    try:
        files = _NOTE.validate_json(data)
    except ValidationError as error:
        raise TidemillError(f"{key} is not a note of a vacuum: {error.error_count()} fields are wrong; remove it") from None
    for file in files:  # whoever can write a note must not choose what is removed
        if ".." in file.key.split("/") or not file.key.startswith(tuple(f"{folder}/" for folder in FILES)):
            raise TidemillError(f"{key} is not a note of a vacuum: it names what lies outside of the table's files; remove it")
    return files


def check_files(store: Store, records: Iterable[Record]) -> None:
    """Incomplete where files of these records, which no version names yet, are gone or given up.

    That can only be where a vacuum and a longer time than its grace came between the record and now. Files are listed after
    the notes are read: a file that is there and was in no note stays for a whole grace, which is time to commit.
    """
    holders = {key: r for r in records for key in files_of(r)}
    noted = {file.key for note in read_notes(store) for file in note.files} & holders.keys()
    keys = {key: record_key(holders[key].generation, holders[key].piece) for key in noted}
    standing = store.find_many(sorted(set(keys.values()))) if keys else {}
    given_up = {k for k in noted if keys[k] not in standing or from_json(standing[keys[k]], keys[k]) != holders[k]}
    folders = {key.rsplit("/", 1)[0] for key in holders}
    gone = given_up | (holders.keys() - {key for folder in folders for key in store.list(folder)})
    if gone:
        raise Incomplete(
            f"nothing is published: {len(gone)} files that this run would publish, for example {min(gone)}, were given up by "
            "`tidemill vacuum`, whose --grace is shorter than the time since they were written. Run the same command again: it "
            "encodes what is missing. If that ends in the same way, `tidemill vacuum OUTPUT --delete` clears records whose files "
            "are gone"
        )


def files_of(record: Record) -> list[str]:
    """Keys of the files that a record names."""
    return [key for key in (record.file, record.quarantine_file) if key is not None]
