"""`tidemill rollback`: an older version becomes the table's content again, by a new commit."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Json, OutputPath, StorageOption, out, parse_options, print_json


def command(
    output: OutputPath,
    to: Annotated[int, typer.Option("--to", help="The version whose content shall stand.", metavar="N")],
    single_writer: Annotated[
        bool, typer.Option("--single-writer", help="As output.single_writer: no other run writes there.")
    ] = False,
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """Publish the content of an older version as a new one. History stays; a later run publishes again what is recorded."""
    from pipeline.following import find_format, follow, followed_by
    from pipeline.ledger.versions import rollback
    from pipeline.table import open_checked, open_table

    options = parse_options(storage_option)
    _, before = open_table(output, options)
    format_ = followed_by(before.pins)
    find_format(format_)  # first, since a missing package is known before anything is published
    store = open_checked(output, options, single_writer=single_writer)
    commit = rollback(store, to)
    follow(format_, store, options, commit)
    published = commit.version > before.version
    if json:
        print_json({"version": commit.version, "generation": commit.generation, "restores": to, "published": published})
        return
    what = f"is version {to} again" if published else f"has the content of version {to} already"
    out.print(f"version {commit.version} of {output} {what}", markup=False, soft_wrap=True)
