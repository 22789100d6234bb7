"""`tidemill files`: the committed data files of a table, one per line."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Json, OutputPath, StorageOption, Version, parse_options, print_json


def command(
    output: OutputPath,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="The files of the rows set aside instead.")] = False,
    version: Version = None,
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """Print the committed data files of a table, one per line."""
    from pipeline.table import committed_files, open_table

    store, commit = open_table(output, parse_options(storage_option), version)
    files = [store.url(key) for key in committed_files(store, commit, of_quarantine=quarantine)]
    if json:
        print_json({"version": commit.version, "generation": commit.generation, "files": files})
        return
    for file in files:
        typer.echo(file)
