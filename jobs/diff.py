"""`tidemill diff`: what differs between two versions of a table."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.console import Json, OutputPath, StorageOption, cell, out, parse_options, print_json


def command(
    output: OutputPath,
    old: Annotated[int, typer.Argument(help="The version to compare from.", metavar="A")],
    new: Annotated[int, typer.Argument(help="The version to compare to.", metavar="B")],
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """Compare two versions: rows added, removed and changed; labels before and after; how far vectors moved."""
    from pipeline.difference import difference
    from pipeline.table import open_table

    store, before = open_table(output, parse_options(storage_option), old)
    _, after = open_table(output, parse_options(storage_option), new)
    found = difference(store, before, after)
    if json:
        print_json(found)
        return
    table = Table(title=cell(f"{output}, version {old} to {new}"), title_justify="left", show_header=False, box=None)
    for name, value in _lines(found):
        table.add_row(f"[bold]{cell(name)}", cell(value))
    out.print(table)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The difference for a person."""
    lines = [(name, ", ".join(f"{v} {k}" for k, v in found[name].items())) for name in ("rows", "shards")]
    lines += [(f"columns {kind}", ", ".join(names)) for kind, names in found["columns"].items() if names]
    for name, labels in found["labels"].items():
        lines.append((f"labels of {name}", _counts(labels["by_label"])))
        lines += [(f"  {s['before']} -> {s['after']}", f"{s['rows']} rows") for s in labels["shifts"]]
    for name, entities in found["entities"].items():
        total = f"{entities['before']} -> {entities['after']}"
        lines.append((f"entities of {name}", f"{total} ({_counts(entities['by_label'])})"))
    for name, vectors in found["vectors"].items():
        if vectors["rows"]:
            cosines = f"mean cosine {vectors['mean_cosine']:.6f}, smallest {vectors['min_cosine']:.6f}"
            lines.append((f"vectors of {name}", f"{vectors['rows']} rows, {cosines}"))
    return lines


def _counts(by_label: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{label} {n['before']} -> {n['after']}" for label, n in by_label.items()) or "none"
