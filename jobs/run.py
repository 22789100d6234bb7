"""`tidemill run`: the job, with progress on standard error and a report at the end."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

from rich.panel import Panel
from rich.table import Table

from jobs.console import ConfigPath, Json, Overrides, cell, err, out, print_json
from jobs.progress import Progress
from jobs.report import describe_drift


def command(config: ConfigPath, overrides: Overrides = None, json: Json = False) -> None:
    """Encode what has no record yet, close the books and publish a new version of the table."""
    from pipeline import flow
    from pipeline.config import load

    settings = load(config, overrides)
    # Ray reports deaths of workers on standard output, which belongs to the report.
    with redirect_stdout(sys.stderr), Progress(err) as progress:
        report = flow.run(settings, progress)
    if json:
        print_json(report)
    else:
        out.print(summary(report))


def summary(report: dict[str, Any]) -> Panel:
    """The end of a run for a person: what was done and the closed books."""
    books = report["books"]
    quarantined = sum(books["quarantined"].values())
    reasons = ", ".join(f"{v} {k}" for k, v in sorted(books["quarantined"].items()))
    parts = f"{books['rows_out']} out + {quarantined} quarantined + {books['filtered']} filtered"
    rows = {
        "table": f"{report['output']}, version {report['version']}" + ("" if report["published"] else " (nothing to do)"),
        "pieces": f"{report['encoded']} encoded, {report['reused']} reused",
        "books": f"{books['rows_in']} rows in = {parts}",
    }
    if reasons:
        rows["quarantined"] = reasons
    if report["taken_apart"] or report["begun_again"]:
        found = ", ".join(f"{n} {reason}" for reason, n in report["isolated"].items()) or "none"
        counts = f"{report['begun_again']} pieces begun again, {report['taken_apart']} taken apart"
        rows["poison"] = f"{counts}; rows isolated: {found}"
    if report["encoded"]:
        rows["speed"] = f"{report['tokens']} tokens in {report['seconds']:.1f} s: {report['tokens_per_second']:.0f} tokens/s"
        rows |= _speed(report["speed"])
    for task, found in report["parity"].items():
        agreed = found["documents"] - found["apart"]
        mean = f", similarity {found['similarity']:.6f}" if found["documents"] else ""
        rows[f"parity of {task}"] = f"{agreed} of {found['documents']} documents as the reference{mean}"
    if report["drift"].get("verdict") not in ("off", "none"):
        rows |= describe_drift(report["drift"])
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{cell(name)}", cell(value))
    return Panel(table, title=f"run {report['run_id']}", title_align="left", expand=False)


def _speed(speed: dict[str, float | None]) -> dict[str, str]:
    """Where the time went and what it cost, as far as it was measured."""
    shares = {"idle": "idle_share", "padding": "padding_share", "of the device's peak": "mfu"}
    parts = [f"{speed[key]:.1%} {name}" for name, key in shares.items() if speed[key] is not None]
    warm, cost = speed["warm_tokens_per_second"], speed["cost_per_million_documents"]
    rows = {"encoder": ", ".join([*([f"{warm:.0f} tokens/s when warm"] if warm else []), *parts])}
    return rows if cost is None else {**rows, "cost": f"{cost:.2f} for a million documents"}
