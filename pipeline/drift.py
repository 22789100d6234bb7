"""Is what a run added like what was added before? Compares the statistics of new pieces with those of the last versions.

A table grows every night, so new pieces are compared with the pieces that the last versions added, not with the whole table.
A new generation is compared whole with the version before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from operators.profile import fold, is_bucket
from pipeline.holding import read_findings
from pipeline.ledger.publish import Commit, commit_schema, manifest_records, read_commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import Store
from pipeline.psi import Comparison, compare
from pipeline.quality import DOCUMENTS, Measures, bin_name, documents_in, measures
from pipeline.sections import Quality

_UNTESTED = ("sum", "items")
"""Sums, and counts of which a document may have any number."""

_MOVED = 3


@dataclass(frozen=True)
class Candidate:
    """A version of the table, or what shall become one."""

    generation: str
    fingerprint: dict[str, Any]
    schema: pa.Schema
    records: Sequence[Record]


@dataclass(frozen=True)
class Reference:
    """Pieces to compare with, and the versions that they came from."""

    versions: tuple[int, int]
    """The first and the last."""
    records: Sequence[Record]


def find_drift(store: Store, base: Commit | None, candidate: Candidate, settings: Quality) -> dict[str, Any]:
    """Compare what `candidate` adds to version `base`.

    `verdict` is off, none (there is nothing to compare with, or too little; `why` says so), calm or drift; `findings` has an
    entry for each statistic beyond its limit, `psi` the index of each, `skipped` the tasks that cannot be compared."""
    if settings.drift == "off":
        return _none("off", "quality.drift is off")
    if base is None:
        return _none("none", "the table has no earlier version")
    known = manifest_records(store, base)
    fresh = list(candidate.records)
    if candidate.generation == base.generation:
        pieces = {r.piece for r in known}
        fresh = [r for r in fresh if r.piece not in pieces]
    now = measures(r.statistics for r in fresh)
    if not fresh:
        return _none("none", "no piece is new")
    if documents_in(now) < settings.min_documents:
        return _none("none", f"{documents_in(now)} new documents are fewer than quality.min_documents {settings.min_documents}")
    if candidate.generation == base.generation:
        references = _references(store, base, known, settings)
    else:
        references = [Reference((base.version, base.version), known)]
    skipped = _incomparable(base, candidate)
    results = [_compare(reference, now, skipped, settings, base.generation == candidate.generation) for reference in references]
    judged = [r for r in results if r["verdict"] != "none"]
    # What is like any of them is nothing new.
    return min(judged, key=lambda r: len(r["findings"])) if judged else results[0]


def describe(finding: dict[str, Any]) -> str:
    """One finding in words: task, statistic, index, and what moved most."""
    moved = ", ".join(f"{name} {before:.1%} -> {now:.1%}" for name, (before, now) in finding["moved"].items())
    what = f"task {finding['task']}: {finding['statistic']}" if finding["task"] else finding["statistic"]
    return f"{what} drifted, PSI {finding['psi']:.3f} > {finding['limit']:.3f} ({moved})"


def _references(store: Store, base: Commit, known: Sequence[Record], settings: Quality) -> list[Reference]:
    """What the last versions added. Where one of them was accepted after it had been held: also what came from it on, and what
    came before it."""
    commits = [base, *_earlier(store, base, settings.versions)]
    seen: dict[str, Record] = {}  # versions have most pieces in common: one object for each
    pieces = [
        {r.piece: seen.setdefault(r.piece, r) for r in (known if c is base else manifest_records(store, c))} for c in commits
    ]
    window = min(settings.versions, len(commits))
    ranges = [(0, window - 1)]  # the newest and the oldest
    accepted = next((i for i, c in enumerate(commits[:window]) if read_findings(store, c.run_id) is not None), None)
    if accepted is not None and accepted != window - 1:
        ranges += [(0, accepted), (accepted + 1, window - 1)]
    references = []
    for newest, oldest in ranges:
        older = pieces[oldest + 1] if oldest + 1 < len(pieces) else {}
        added = {k: r for one in pieces[newest : oldest + 1] for k, r in one.items() if k not in older}
        references.append(Reference((commits[oldest].version, commits[newest].version), list(added.values())))
    if documents_in(measures(r.statistics for r in references[0].records)) < settings.min_documents:
        references[0] = Reference((base.version, base.version), known)
    return references


def _earlier(store: Store, base: Commit, count: int) -> list[Commit]:
    """Up to `count` versions before `base`, the newest first, as long as they are there and of its generation."""
    found: list[Commit] = []
    for version in range(base.version - 1, max(0, base.version - 1 - count), -1):
        try:
            commit = read_commit(store, version)
        except FileNotFoundError:  # removed as too old
            break
        if commit.generation != base.generation:
            break
        found.append(commit)
    return found


def _incomparable(base: Commit, candidate: Candidate) -> dict[str, str]:
    """Tasks whose columns mean something else than before, and why."""
    schema, before, now = commit_schema(base), base.fingerprint.get("tasks", {}), candidate.fingerprint.get("tasks", {})
    skipped = {}
    for task, settings in now.items():
        index = schema.get_field_index(task)
        if index < 0:
            skipped[task] = "the column is new"
        elif schema.field(index).type != candidate.schema.field(task).type:
            skipped[task] = f"the column's type changed from {schema.field(index).type} to {candidate.schema.field(task).type}"
        elif before.get(task, {}).get("head") != settings.get("head"):
            skipped[task] = f"the head changed from {before.get(task, {}).get('head')} to {settings.get('head')}"
        elif before[task].get("settings", {}).get("labels") != settings.get("settings", {}).get("labels"):
            skipped[task] = "the labels in the config changed"
    return skipped


def _compare(
    reference: Reference, now: Measures, skipped: dict[str, str], settings: Quality, same_generation: bool
) -> dict[str, Any]:
    before = measures(r.statistics for r in reference.records)
    n, m = documents_in(before), documents_in(now)
    if n < settings.min_documents:
        first, last = reference.versions
        why = f"the statistics of versions {first} to {last} count {n} documents, fewer than quality.min_documents"
        return _none("none", f"{why} {settings.min_documents}")
    skipped = {**skipped, **_strangers(before, now, skipped)}
    pairs = dict(_pairs(before, now, skipped, same_generation))
    indexes: dict[str, dict[str, float]] = {}
    findings = []
    for (task, statistic), pair in pairs.items():
        index, limit = pair.psi, max(settings.psi, pair.noise(n, m, len(pairs)))
        indexes.setdefault(task, {})[statistic] = round(index, 4)
        if index > limit:
            found = {"task": task, "statistic": statistic, "psi": round(index, 4), "limit": round(limit, 4)}
            moved = {bin_name(statistic, key): shares for key, shares in pair.moved(_MOVED).items()}
            findings.append({**found, "moved": moved})
    return {
        "verdict": "drift" if findings else "calm",
        "why": "",
        "documents": m,
        "reference": {"versions": list(reference.versions), "documents": n},
        "findings": sorted(findings, key=lambda f: -f["psi"]),
        "psi": indexes,
        "skipped": skipped,
    }


def _strangers(before: Measures, now: Measures, skipped: Iterable[str]) -> dict[str, str]:
    """Tasks that have no label in common with what they had before: the model's names changed, and nothing can be compared."""
    found = {}
    for task in sorted({*before, *now} - {DOCUMENTS, *skipped}):
        if task not in now or task not in before:
            found[task] = "the column is new" if task not in before else "the column is gone"
            continue
        old, new = _alike(before[task].get("label", {}), now[task].get("label", {}))
        if old and new and not {*old} & {*new}:
            found[task] = "no label is as before"
    return found


def _pairs(
    before: Measures, now: Measures, skipped: Iterable[str], same_generation: bool
) -> Iterable[tuple[tuple[str, str], Comparison]]:
    """The histograms that can be compared."""
    for task in sorted({*before} & {*now} - {*skipped}):
        for statistic in sorted({*before[task]} & {*now[task]} - {*_UNTESTED}):
            if statistic.startswith("direction") and not same_generation:
                continue  # another model's space has directions of its own
            old, new = before[task][statistic], now[task][statistic]
            pair = compare(*(_alike(old, new) if statistic == "label" else (old, new)))
            if pair.before.sum() and pair.now.sum():
                yield (task, statistic), pair


def _alike(old: dict[str, float], new: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Labels in buckets on both sides, where they are on one."""
    always = any(is_bucket(name) for name in (*old, *new))
    return fold(old, always=always), fold(new, always=always)


def _none(verdict: str, why: str) -> dict[str, Any]:
    return {"verdict": verdict, "why": why, "documents": 0, "reference": None, "findings": [], "psi": {}, "skipped": {}}
