"""A rollback as the simulator does it: a commit of its own that names the manifest of an older version."""

from __future__ import annotations

import uuid
from dataclasses import replace

from pipeline.ledger import publish
from pipeline.ledger.publish import Commit
from pipeline.ledger.store import Exists, Store, Unknown


def rollback(store: Store, to: int) -> Commit | None:
    """Version `to` as a new version; None where it is gone, or where another commit came first."""
    newest = publish.head(store)
    if newest is None or to >= newest.version:
        return None
    try:
        old = publish.read_commit(store, to)
        publish.manifest_records(store, old)
    except FileNotFoundError:
        return None
    commit_id = uuid.uuid4().hex
    commit = replace(
        old,
        version=newest.version + 1,
        parent=publish.fingerprint_of(store, newest),
        commit_id=commit_id,
        run_id=commit_id[:16],
        pins={**old.pins, "restores": to},
    )
    try:
        store.create(publish.commit_key(commit.version), publish.encode_commit(commit))
    except (Exists, Unknown):
        return None
    return commit
