"""`tidemill publish`: publishes a run that a quality gate held back."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Json, OutputPath, StorageOption, out, parse_options, print_json


def command(
    output: OutputPath,
    accept: Annotated[str, typer.Option("--accept", help="The run, as its message named it.", metavar="RUN")],
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """Publish a held run as it is recorded; nothing is encoded again."""
    from pipeline import holding

    commit = holding.accept(output, accept, parse_options(storage_option))
    report = {"run_id": accept, "version": commit.version, "generation": commit.generation, "published": commit.run_id == accept}
    if json:
        print_json(report)
    else:
        out.print(f"version {commit.version} of {output}" + ("" if report["published"] else " held it already"), markup=False)
