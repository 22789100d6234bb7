"""`tidemill export`: the graphs that backends onnx and openvino compute, verified before they are kept."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.console import ConfigPath, Json, Overrides, cell, out, print_json


def command(
    config: ConfigPath,
    overrides: Overrides = None,
    to: Annotated[str | None, typer.Option(help="Directory; default: runtime.exports, or the cache.", metavar="DIR")] = None,
    sample: Annotated[int, typer.Option(help="int8: windows to calibrate on, documents to verify on.", min=1)] = 200,
    min_similarity: Annotated[float, typer.Option(help="int8: mean that each task must reach.", min=0, max=1)] = 0.99,
    json: Json = False,
) -> None:
    """Export the job's models for its backend and precision. In int8 they are calibrated on its own input."""
    from pipeline.config import load
    from pipeline.exporting import Options, export

    settings = load(config, overrides)
    with redirect_stdout(sys.stderr):  # the libraries report on it
        report = export(settings, Options(to, sample, min_similarity))
    if json:
        print_json(report)
    else:
        out.print(_summary(report))


def _summary(report: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    for made in report["exports"]:
        revision = f" at {made['revision']}" if made["revision"] else ""
        rows = {"model": f"{made['model']}{revision}", "export": f"{made['folder']} ({report['backend']}, {report['precision']})"}
        if "calibration" in made:
            rows["calibrated on"] = f"{made['calibration']['windows']} windows"
            for task, found in made["verification"].items():
                rows[f"task {task}"] = (
                    f"similarity to the reference {found['mean']:.6f} on average, {found['min']:.6f} at least, "
                    f"of {found['documents']} other documents"
                )
        else:
            found = made["verification"]
            rows["tokens' vectors"] = f"cosine to the reference {found['mean']:.6f} on average, {found['min']:.6f} at least"
        for name, value in rows.items():
            table.add_row(f"[bold]{cell(name)}", cell(value))
    return table
