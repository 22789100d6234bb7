"""`tidemill plan`: what a run would do, checked and estimated, without loading a weight."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from jobs.console import ConfigPath, Json, Overrides, cell, human, out, print_json


def command(config: ConfigPath, overrides: Overrides = None, json: Json = False) -> None:
    """Check the job and say what a run would do: shards, pieces, tokens, windows, device, memory, output schema."""
    from pipeline.config import load
    from pipeline.estimate import estimate
    from pipeline.planning import make_plan

    report = estimate(make_plan(load(config, overrides)))
    if json:
        print_json(report)
        return
    table = Table(show_header=False, box=None)
    for name, value in report.items():
        table.add_row(f"[bold]{name}", cell(_shown(name, value)))
    out.print(table)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k}: {_shown(k, v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "\n".join(str(v) for v in value) or "none"
    return human(value) if name.endswith("bytes") and isinstance(value, int) else str(value)
