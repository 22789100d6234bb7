"""What the commands share: options, JSON on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.errors import ConfigError
from pipeline.plain_yaml import scalar
from pipeline.urls import check_options
from pipeline.wording import message_lines, printable, without_secrets

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)

ConfigPath = Annotated[str, typer.Argument(help="The job: a YAML file, by path or URL.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that win over the file, as key.path=value.", metavar="[KEY.PATH=VALUE]...")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
OutputPath = Annotated[str, typer.Argument(help="The table: output.path of its job.", metavar="OUTPUT")]
Version = Annotated[int | None, typer.Option("--version", help="A version of the table; default: the newest.")]
StorageOption = Annotated[
    list[str] | None,
    typer.Option("--storage-option", help="fsspec option of the table's store, as key=value.", metavar="KEY=VALUE"),
]


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def clean(text: str) -> str:
    """Text of others for a terminal: its lines, tabs kept, without control characters."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def cell(text: str) -> str:
    """Text of others for a cell of a table, as it is and not as markup."""
    return escape(clean(text))


def fail(message: str, code: int, run_id: str | None = None) -> NoReturn:
    """End with `code`: the message on standard error, and as JSON on standard output where that was asked for."""
    message = message_lines(without_secrets(message))
    err.print("[bold red]tidemill:[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    if "--json" in sys.argv:
        print_json({"error": message, "exit_code": code, **({"run_id": run_id} if run_id else {})})
    sys.exit(code)


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """`["endpoint_url=http://host", "anon=true"]` as fsspec options, values read as YAML."""
    options: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError("write key=value, for example endpoint_url=http://localhost:9000", field="--storage-option")
        options[key] = scalar(value)
    try:
        return check_options(options)
    except ValueError as error:
        raise ConfigError(str(error), field="--storage-option") from None


def human(size: float) -> str:
    """Bytes in binary units, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
