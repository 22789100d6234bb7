"""`tidemill report`: the run that made a version of a table, what its rows are like, and whether they drifted."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jobs.console import Json, OutputPath, StorageOption, Version, out, parse_options, print_json

_MOST_LABELS = 10


def command(output: OutputPath, version: Version = None, storage_option: StorageOption = None, json: Json = False) -> None:
    """Show the last run's report, the statistics of the rows and their drift against the versions before."""
    from pipeline.reporting import table_report

    report = table_report(output, parse_options(storage_option), version)
    if json:
        print_json(report)
    else:
        out.print(show(output, report))


def show(output: str, report: dict[str, Any]) -> Group:
    """The report for a person."""
    books, run, quality = report["books"], report["run"], report["quality"]
    rows = {
        "run": f"{report['run_id']}, {report['created_at']}",
        "rows": f"{books['rows_in']} in, {books['rows_out']} out, {sum(books['quarantined'].values())} quarantined",
    }
    if run:
        rows["pieces"] = f"{run['encoded']} encoded, {run['reused']} reused"
        rows["speed"] = f"{run['tokens']} tokens in {run['seconds']:.1f} s: {run['tokens_per_second']:.0f} tokens/s"
    if report["held"]:
        rows["held"] = f"and accepted: {report['held']['why']}"
    if quality:
        rows["documents"] = f"{quality['documents']}, {quality['empty_share']:.1%} of them empty"
        rows["tokens of a document"] = _pairs(quality["lengths"])
    rows |= describe_drift(report["drift"])
    return Group(
        _table(f"{output}, version {report['version']}", rows),
        *(_table(f"task {task}", _task(found)) for task, found in quality.get("tasks", {}).items()),
    )


def describe_drift(drift: dict[str, Any]) -> dict[str, str]:
    """What the drift gate found, as rows of a summary."""
    from pipeline.drift import describe

    if drift.get("verdict") in (None, "off", "none"):
        return {"drift": f"not judged: {drift['why']}"} if drift.get("why") else {}
    first, last = drift["reference"]["versions"]
    against = f"{drift['documents']} new documents against {drift['reference']['documents']} of versions {first} to {last}"
    rows = {"drift": f"{'; '.join(map(describe, drift['findings'])) or 'none'}: {against}"}
    if drift["skipped"]:
        rows["not compared"] = "; ".join(f"{task}: {why}" for task, why in drift["skipped"].items())
    return rows


def _task(found: dict[str, Any]) -> dict[str, str]:
    rows = {}
    if found.get("null_share"):
        rows["null"] = f"{found['null_share']:.1%}"
    rows |= {name: _pairs(found[name], _MOST_LABELS) for name in ("labels", "items", "counts") if name in found}
    if "mean_score" in found:
        rows["score"] = f"{found['mean_score']} +- {found['score_deviation']}"
    if "entropy" in found:
        rows["entropy"] = str(found["entropy"])
    if "norm" in found:
        rows["norm"] = f"{found['norm']['mean']} +- {found['norm']['deviation']}"
    return rows


def _pairs(counts: dict[str, int], most: int = 99) -> str:
    """`a: 3, b: 2, ...`"""
    shown = [f"{name}: {count}" for name, count in list(counts.items())[:most]]
    return ", ".join([*shown, *([f"and {len(counts) - most} more"] if len(counts) > most else [])])


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{escape(name)}", escape(value))
    return table
