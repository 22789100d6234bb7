"""`tidemill status`: the books of a committed table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from jobs.console import Json, OutputPath, StorageOption, Version, cell, out, parse_options, print_json


def command(output: OutputPath, version: Version = None, storage_option: StorageOption = None, json: Json = False) -> None:
    """Show the version, the generation and the closed books of a table."""
    from pipeline.following import standing_of
    from pipeline.quality import plain_books, readable
    from pipeline.table import open_table

    options = parse_options(storage_option)
    store, commit = open_table(output, options, version)
    totals = commit.totals if isinstance(commit.totals, dict) else asdict(commit.totals)
    books: dict[str, Any] = {
        "version": commit.version,
        "generation": commit.generation,
        **plain_books(totals),
        "duplicate_ids": commit.duplicate_ids,
        "run_id": commit.run_id,
        "created_at": commit.created_at,
        "pins": commit.pins,
        **standing_of(store, options, commit),
    }
    if json:
        print_json({**books, "quality": readable(totals["statistics"])})
        return
    table = Table(title=cell(output), title_justify="left", show_header=False, box=None)
    for name, value in books.items():
        shown = ", ".join(f"{k}: {v}" for k, v in value.items()) or "none" if isinstance(value, dict) else str(value)
        table.add_row(f"[bold]{name}", cell(shown))
    out.print(table)
