"""Runs that a quality gate holds back: all their records are there, and `accept` publishes them without encoding anything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigError, Fenced, TidemillError
from pipeline.following import find_format, follow, followed_by
from pipeline.ledger.publish import Commit, Draft, head, manifest_records, publish, read_commit
from pipeline.ledger.records import read_records
from pipeline.ledger.store import Store
from pipeline.table import count_duplicate_ids, open_checked


@dataclass(frozen=True)
class _Held:
    """What is left in the store: a draft without its records, and the pieces that they are of."""

    draft: dict[str, Any]
    pieces: list[str]
    has_ids: bool
    """Duplicate ids are counted."""
    single_writer: bool
    """As `output.single_writer`."""
    why: str
    findings: dict[str, Any] = field(default_factory=dict)
    """Of each gate, by its name."""


_HELD = TypeAdapter(_Held)


def hold(store: Store, draft: Draft, *, has_ids: bool, single_writer: bool, why: str, findings: dict[str, Any]) -> None:
    """Leave what `accept` needs, and what the gates found."""
    plain = {**asdict(replace(draft, records=())), "shards": sorted(draft.shards)}
    held = _Held(plain, [r.piece for r in draft.records], has_ids, single_writer, why, findings)
    store.put(_key(draft.run_id), _HELD.dump_json(held, indent=1))


def accept(path: str, run_id: str, storage_options: dict[str, Any]) -> Commit:
    """Publish a held run of the table at `path`; nothing is encoded again. The table format that its config named follows.

    The version that holds its pieces already, where there is one. ConfigError where the run is not held, Fenced where another
    version was committed since it began."""
    held = _read(open_checked(path, storage_options), path, run_id)
    store = open_checked(path, storage_options, single_writer=held.single_writer)
    format_ = followed_by(held.draft["pins"])
    find_format(format_)  # first, since a missing package is known before anything is published
    commit = _publish(store, held, run_id)
    follow(format_, store, storage_options, commit)
    return commit


def _publish(store: Store, held: _Held, run_id: str) -> Commit:
    current = head(store)
    if current and current.version > held.draft["base"]:
        if set(held.pieces) <= {r.piece for r in manifest_records(store, current)}:
            return current
        raise Fenced(
            f"version {current.version} was committed by run {current.run_id} after run {run_id} began, which may have seen "
            "older shards; nothing is published. Run the job again: what is recorded is not encoded again"
        )
    recorded = read_records(store, held.draft["generation"])
    missing = [piece for piece in held.pieces if piece not in recorded]
    if missing:
        raise TidemillError(f"{len(missing)} records of run {run_id} are gone, the first is {missing[0]}; run the job again")
    records = [recorded[piece] for piece in held.pieces]
    draft = Draft(**{**held.draft, "records": records, "shards": frozenset(held.draft["shards"])})
    return publish(store, draft, count_duplicates=lambda final: count_duplicate_ids(store, final) if held.has_ids else 0)


def read_findings(store: Store, run_id: str) -> dict[str, Any] | None:
    """`why` and `findings` of a run that was held, be it accepted by now; None where it was not held."""
    try:
        held = _HELD.validate_json(store.get(_key(run_id)))
    except (FileNotFoundError, ValidationError, ConfigError):
        return None
    return {"why": held.why, "findings": held.findings}


def published_pieces(store: Store, newest: Commit | None, generation: str) -> set[str]:
    """Pieces of a generation that stood in any version so far: they were within tolerance, or accepted."""
    pieces: set[str] = set()
    for version in range(1, newest.version + 1 if newest else 1):
        try:
            commit = read_commit(store, version)
        except FileNotFoundError:  # removed as too old
            continue
        if commit.generation == generation:
            pieces |= {r.piece for r in manifest_records(store, commit)}
    return pieces


def _read(store: Store, path: str, run_id: str) -> _Held:
    try:
        return _HELD.validate_json(store.get(_key(run_id)))
    except FileNotFoundError:
        raise ConfigError(
            f"no run {run_id!r} is held at {path!r}; the message of the held run names it", field="--accept"
        ) from None
    except ValidationError as error:
        raise TidemillError(f"{_key(run_id)} cannot be read: {error.error_count()} fields are wrong; run the job again") from None
    except TidemillError:
        raise
    except Exception as error:  # each store's library raises its own
        raise ConfigError(f"cannot read the store: {type(error).__name__}; check path and credentials", field="output") from error


def _key(run_id: str) -> str:
    if not run_id.isalnum():
        raise ConfigError(f"{json.dumps(run_id)} is no run id; the message of the held run names it", field="--accept")
    return f"_runs/{run_id}/held.json"
