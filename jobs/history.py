"""`tidemill history`: the versions of a table and what each changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from jobs.console import Json, OutputPath, StorageOption, cell, out, parse_options, print_json


def command(
    output: OutputPath,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only the newest N versions.", metavar="N")] = None,
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """List the versions of a table: when, by which run, how many rows, which shards came, changed or left."""
    from pipeline.ledger.versions import history
    from pipeline.table import open_table

    store, newest = open_table(output, parse_options(storage_option))
    changes = history(store, newest, last)
    if json:
        print_json({"versions": [asdict(change) for change in changes]})
        return
    table = Table(title=cell(output), title_justify="left", box=None)
    for name in ("version", "when", "run", "generation", "what", "rows", "set aside", "pieces", "shards"):
        table.add_column(name)
    for c in changes:
        what = f"rollback to {c.restores}" if c.restores is not None else c.kind
        shards = "?" if c.added is None else f"+{len(c.added)} ~{len(c.changed or ())} -{len(c.removed or ())}"
        numbers = (str(c.rows_out), str(c.quarantined), str(c.pieces), shards)
        table.add_row(str(c.version), c.created_at, c.run_id, c.generation, what, *numbers)
    out.print(table)
