"""Versions of the table: each is one create-only commit that names a manifest, the records of all its pieces.

`publish` switches readers from version N to N + 1 in one step, or finds that there is nothing to publish, or raises Fenced.
Commits, manifests and files never change; an older version stays readable by its number.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import Fenced, Incomplete, TidemillError
from pipeline.ledger.books import check_schemas, totals
from pipeline.ledger.notes import check_files, files_of
from pipeline.ledger.records import Record, from_table, to_table
from pipeline.ledger.store import Exists, Store, Unknown

ATTEMPTS = 50
"""Times that another run's commit may come first before `publish` gives up."""


@dataclass(frozen=True)
class Commit:
    """One version of the table."""

    version: int
    """1, 2, 3, ..."""
    parent: str | None
    """SHA-256 of the previous commit's object; None for version 1."""
    commit_id: str
    """Unique; by it a run recognizes its own commit after a timeout."""
    run_id: str
    generation: str
    fingerprint: dict[str, Any]
    """What the generation is the hash of."""
    pins: dict[str, Any]
    """What `auto` resolved to when the generation began (piece_bytes, precision), and the hub's commits of its models."""
    schema: str
    """Arrow schema of the data files (`encode_schema`)."""
    manifest: str
    """Key of the manifest."""
    totals: dict[str, Any]
    """`books.Totals` of all pieces."""
    duplicate_ids: int
    created_at: str
    """Informational; nothing is decided by a clock."""
    restores: int | None = None
    """The older version whose manifest this is, where a rollback made it."""


_COMMIT = TypeAdapter(Commit)
COMMIT_KEY = re.compile(r"_commits/([0-9]{8,})\.json")
"""What `commit_key` gives; other files in that folder, such as a copy somebody made, are no versions."""
_MANIFEST_KEY = re.compile(r"_manifests/[^/\\]+\.parquet")
"""Whoever can write a commit must not choose what is read."""


@dataclass(frozen=True)
class Draft:
    """What a run wants to publish."""

    run_id: str
    generation: str
    fingerprint: dict[str, Any]
    pins: dict[str, Any]
    schema: str
    records: Sequence[Record]
    """The closed books of this run's input."""
    shards: frozenset[str]
    """Keys of the shards in this run's input."""
    keep_removed: bool
    """Keep pieces of shards that are in the table and not in this run's input (`output.removed`)."""
    base: int
    """Version that the run read when it began; 0 where there was none."""


def head(store: Store) -> Commit | None:
    """The newest version, None where nothing was published yet."""
    matches = (COMMIT_KEY.fullmatch(key) for key in store.list("_commits"))
    version = max((int(match[1]) for match in matches if match), default=None)
    return None if version is None else read_commit(store, version)


def read_commit(store: Store, version: int) -> Commit:
    """One version; FileNotFoundError where it does not exist."""
    key = commit_key(version)
    try:
        commit = _COMMIT.validate_json(store.get(key))
    except ValidationError as error:
        raise TidemillError(f"{key} is not a commit: {error.error_count()} fields are wrong; restore it from a backup") from None
    if not _MANIFEST_KEY.fullmatch(commit.manifest) or "/" in commit.generation:
        raise TidemillError(f"{key} is not a commit: it leads out of the table; restore it from a backup")
    return commit


def encode_commit(commit: Commit) -> bytes:
    """A commit as its object holds it."""
    return _COMMIT.dump_json(commit, indent=1)


def fingerprint_of(store: Store, commit: Commit) -> str:
    """SHA-256 of a commit's object, by which the next one names its parent."""
    return hashlib.sha256(store.get(commit_key(commit.version))).hexdigest()


def commit_key(version: int) -> str:
    """Where a version lives."""
    return f"_commits/{version:08d}.json"


def manifest_records(store: Store, commit: Commit) -> list[Record]:
    """The records of all pieces of a version, sorted by shard and position."""
    return decode_manifest(store.get(commit.manifest), commit.manifest)


def decode_manifest(data: bytes, key: str) -> list[Record]:
    """The records in the manifest `key`; TidemillError where it is none."""
    # Arrow's threads may let go of Python's bytes after the read; in a run that ends at once, after the interpreter has gone.
    manifest = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    return from_table(manifest, key)


def current_records(store: Store, commit: Commit | None, generation: str) -> list[Record]:
    """The records of a version if it is of this generation, otherwise none: pieces of two generations never mix."""
    return manifest_records(store, commit) if commit and commit.generation == generation else []


def encode_schema(schema: pa.Schema) -> str:
    """An Arrow schema as text: base64 of its IPC message."""
    return base64.b64encode(schema.serialize()).decode()


def commit_schema(commit: Commit) -> pa.Schema:
    """The Arrow schema of a version's data files."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(commit.schema)))


def publish(
    store: Store,
    draft: Draft,
    count_duplicates: Callable[[list[Record]], int],
    pause: Callable[[float], None] = time.sleep,
) -> Commit:
    """Make `draft` part of the table's newest version; returns that version.

    Its `run_id` is the draft's if this call published it; otherwise the table held the same pieces already and nothing was
    written. `count_duplicates` is given the records of the version to be and returns how many of its ids are duplicates.

    Runs of one generation that publish at the same time come one after another: the later one keeps the other's shards (as
    `keep_removed` says), and where both saw a shard in different versions, the later one's view stands.

    Raises Fenced where another generation was committed since `draft.base`, Incomplete where the union has two schemas or a
    vacuum gave files of it up, and TidemillError where other runs' commits came first ATTEMPTS times.
    """
    commit_id = uuid.uuid4().hex
    for _ in range(ATTEMPTS):
        current = head(store)
        own = find_own(store, commit_id, draft.base, current)
        if own:
            return own
        fence(draft, current)
        before = current_records(store, current, draft.generation)
        records = union(draft, before)
        if current and before and {r.piece for r in records} == {r.piece for r in before}:
            return current
        named = {key for r in before for key in files_of(r)}
        check_files(store, [r for r in records if not named.issuperset(files_of(r))])
        commit = _compose(store, draft, records, current, commit_id, count_duplicates(records))
        if commit_once(store, commit, records):
            return commit
        pause(random.uniform(0.05, 0.5))  # only spreads attempts  # nosec B311
    raise TidemillError(f"{ATTEMPTS} times another run's commit came first; run the same command again, nothing is lost")


def find_own(store: Store, commit_id: str, base: int, current: Commit | None) -> Commit | None:
    """Our commit, if an attempt whose outcome we did not learn has worked; others may have committed on top of it."""
    for version in range(current.version if current else 0, base, -1):
        with suppress(FileNotFoundError):  # removed as too old
            commit = read_commit(store, version)
            if commit.commit_id == commit_id:
                return commit
    return None


def fence(draft: Draft, current: Commit | None) -> None:
    """Keeps a run that began before a generation switch from undoing it, and a limited run from shrinking what came since."""
    if current and current.version > draft.base and draft.pins.get("limit") is not None:
        raise Fenced(
            f"version {current.version} was committed by run {current.run_id} while this run, which input.limit restricts, "
            "worked; nothing is published. Try a config with another output.path"
        )
    if current and current.generation != draft.generation and current.version > draft.base:
        raise Fenced(
            f"version {current.version} of generation {current.generation} was committed by run {current.run_id} while this run "
            f"({draft.generation}, begun on version {draft.base}) worked; nothing is published. If this config is the one that "
            "shall stand, run it again"
        )


def union(draft: Draft, before: Sequence[Record]) -> list[Record]:
    """The pieces of the next version: the draft's, and those of `before` (same generation) whose shards the run did not see."""
    kept = [r for r in before if r.shard not in draft.shards] if draft.keep_removed else []
    records = sorted([*draft.records, *kept], key=lambda r: (r.shard, r.start, r.index))
    for problem in check_schemas(records):
        raise Incomplete(f"nothing is published: {problem}; give kept columns their types (input.keep)")
    return records


def commit_once(store: Store, commit: Commit, records: Sequence[Record]) -> bool:
    """Manifest, then commit. False where the version exists or the outcome is unknown: the caller reads before going on."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(records), sink, compression="zstd")
    store.put(commit.manifest, sink.getvalue().to_pybytes())
    return write_commit(store, commit)


def write_commit(store: Store, commit: Commit) -> bool:
    """The switch itself, once the manifest is there. False as in `commit_once`."""
    try:
        store.create(commit_key(commit.version), encode_commit(commit))
    except (Exists, Unknown):
        return False
    return True


def _compose(
    store: Store, draft: Draft, records: Sequence[Record], current: Commit | None, commit_id: str, duplicate_ids: int
) -> Commit:
    return Commit(
        version=current.version + 1 if current else 1,
        parent=fingerprint_of(store, current) if current else None,
        commit_id=commit_id,
        run_id=draft.run_id,
        generation=draft.generation,
        fingerprint=draft.fingerprint,
        pins=draft.pins,
        schema=draft.schema,
        manifest=f"_manifests/{uuid.uuid4().hex}.parquet",
        totals=asdict(totals(records)),
        duplicate_ids=duplicate_ids,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
