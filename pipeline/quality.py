"""Statistics of what is in the table, for people and for the gate: made with each piece, kept in its record, added up.

A record's `statistics` hold them as `quality:TASK:MEASURE:BIN` (the task's name quoted as in a URL, empty for the documents
themselves), as counts and sums only, so that those of any pieces can be added.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from operators.profile import fold, lengths, profile
from operators.schema import N_SEGMENTS, N_TOKENS

PREFIX = "quality:"

DOCUMENTS = ""
"""Stands for the documents themselves where a task's name is expected."""

Counts = dict[str, float]
Measures = dict[str, dict[str, Counts]]
"""Task -> measure -> bin -> count."""

_LABELS = ("label", "items")


def statistics(documents: pa.Table, tasks: Iterable[str]) -> dict[str, float]:
    """Of the rows of the output table."""
    found = {DOCUMENTS: {**lengths("length", documents[N_TOKENS]), **lengths("segments", documents[N_SEGMENTS])}}
    found |= {task: profile(documents[task]) for task in tasks}
    return {f"{PREFIX}{quote(task, safe='')}:{name}": value for task, counts in found.items() for name, value in counts.items()}


def measures(parts: Iterable[Mapping[str, float]]) -> Measures:
    """The sum of the statistics of pieces; labels in buckets where one piece has them so."""
    total: Measures = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for part in parts:
        for name, value in part.items():
            if name.startswith(PREFIX):
                task, measure, key = name.removeprefix(PREFIX).split(":", 2)
                total[unquote(task)][measure][key] += value
    return {
        task: {measure: fold(counts) if measure in _LABELS else dict(counts) for measure, counts in found.items()}
        for task, found in total.items()
    }


def documents_in(found: Measures) -> int:
    """How many documents were counted."""
    return int(sum(found.get(DOCUMENTS, {}).get("length", {}).values()))


def without(plain: Mapping[str, float]) -> dict[str, float]:
    """Statistics of other kinds."""
    return {name: value for name, value in plain.items() if not name.startswith(PREFIX)}


def plain_books(totals: Mapping[str, Any]) -> dict[str, Any]:
    """A commit's totals without the counts that `readable` shows."""
    return {**totals, "statistics": without(totals.get("statistics", {}))}


def readable(plain: Mapping[str, float]) -> dict[str, Any]:
    """Statistics for people, shares and means rounded; empty where none were made."""
    found = measures([plain])
    count = documents_in(found)
    if not count:
        return {}
    own = found.pop(DOCUMENTS)
    return {
        "documents": count,
        "empty_share": round(own["length"].get("0", 0) / count, 4),
        "lengths": _ranges(own["length"]),
        "segments": _ranges(own.get("segments", {})),
        "tasks": {task: _task(measured) for task, measured in sorted(found.items())},
    }


def bin_name(measure: str, key: str) -> str:
    """A bin as people read it."""
    if not key.isdigit():
        return key
    bin_ = int(key)
    if measure in ("length", "segments", "count"):
        low, high = (2 ** (bin_ - 1), 2**bin_ - 1) if bin_ else (0, 0)
        return str(low) if low == high else f"{low}-{high}"
    if measure in ("score", "entropy") and bin_ < 20:
        return f"{bin_ / 20:.2f}-{(bin_ + 1) / 20:.2f}"
    return key


def _task(found: Mapping[str, Counts]) -> dict[str, Any]:
    sums = found.get("sum", {})
    shown: dict[str, Any] = {"null_share": round(_share(found.get("null", {}), "yes"), 4)}
    for measure, name in (("label", "labels"), ("items", "items")):
        if measure in found:
            shown[name] = {label: int(n) for label, n in sorted(found[measure].items(), key=lambda item: (-item[1], item[0]))}
    if "count" in found:
        shown["counts"] = _ranges(found["count"])
    if "score" in found:
        mean, deviation = _moments(found["score"], sums.get("score", 0.0), sums.get("score2", 0.0))
        shown |= {"mean_score": mean, "score_deviation": deviation}
    if "entropy" in found:
        shown["entropy"] = round(sums.get("entropy", 0.0) / sum(found["entropy"].values()), 4)
    if "norm" in found:
        mean, deviation = _moments(found["norm"], sums.get("norm", 0.0), sums.get("norm2", 0.0))
        shown["norm"] = {"mean": mean, "deviation": deviation}
    return shown


def _moments(counts: Counts, total: float, squares: float) -> tuple[float, float]:
    """Mean and standard deviation, rounded."""
    count = sum(counts.values())
    mean = total / count
    return round(mean, 4), round(math.sqrt(max(0.0, squares / count - mean**2)), 4)


def _share(counts: Counts, key: str) -> float:
    total = sum(counts.values())
    return counts.get(key, 0.0) / total if total else 0.0


def _ranges(counts: Counts) -> dict[str, int]:
    """Bins of `lengths` by the numbers they hold: 0, 1, 2-3, 4-7, ..."""
    return {bin_name("length", str(key)): int(counts[str(key)]) for key in sorted(map(int, counts))}
