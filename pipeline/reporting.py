"""What is known of a version of a table: the report of the run that made it, its statistics, and its drift."""

from __future__ import annotations

import json
from typing import Any

from pipeline.drift import Candidate, find_drift
from pipeline.holding import read_findings
from pipeline.ledger.publish import Commit, commit_schema, manifest_records, read_commit
from pipeline.ledger.store import Store
from pipeline.quality import plain_books, readable
from pipeline.sections import Quality
from pipeline.table import open_table


def table_report(path: str, storage_options: dict[str, Any], version: int | None = None) -> dict[str, Any]:
    """Of the newest version, or `version`; ConfigError where there is none.

    `run` is the report of its run, `held` what a gate had found before somebody accepted it; each null where there is none.
    `drift` is as that run saw it, and otherwise as the default settings see it."""
    store, commit = open_table(path, storage_options, version)
    run = _run_report(store, commit.run_id)
    held = read_findings(store, commit.run_id)
    return {
        "version": commit.version,
        "generation": commit.generation,
        "run_id": commit.run_id,
        "created_at": commit.created_at,
        "books": plain_books(commit.totals),
        "duplicate_ids": commit.duplicate_ids,
        "quality": readable(commit.totals.get("statistics", {})),
        "drift": _drift(store, commit, run, held),
        "held": held,
        "run": run,
    }


def _run_report(store: Store, run_id: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.get(f"_runs/{run_id}/report.json"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _drift(store: Store, commit: Commit, run: dict[str, Any] | None, held: dict[str, Any] | None) -> dict[str, Any]:
    for seen in ((run or {}).get("drift"), (held or {}).get("findings", {}).get("drift")):
        if isinstance(seen, dict) and seen.get("verdict") not in (None, "off"):
            return seen
    try:
        before = read_commit(store, commit.version - 1) if commit.version > 1 else None
    except FileNotFoundError:  # removed as too old
        before = None
    candidate = Candidate(commit.generation, commit.fingerprint, commit_schema(commit), manifest_records(store, commit))
    return find_drift(store, before, candidate, Quality())
