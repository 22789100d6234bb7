"""`tidemill vacuum`: removes old versions of a table, and what killed and lost runs left."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Json, OutputPath, StorageOption, human, out, parse_options, print_json
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.ledger.vacuum import Found

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def command(
    output: OutputPath,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, only say what would go.")] = False,
    keep_versions: Annotated[int, typer.Option("--keep-versions", help="Newest versions that stay.", metavar="N")] = 10,
    grace: Annotated[
        str, typer.Option("--grace", help="Longer than any run or reader takes: 12h, 7d, 2w.", metavar="TIME")
    ] = "7d",
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """Remove old versions and what killed runs left; only says what would go, unless --delete is given."""
    from pipeline.ledger.vacuum import Rules
    from pipeline.vacuuming import vacuum_table

    rules = Rules(keep_versions, seconds(grace))
    found = vacuum_table(output, parse_options(storage_option), rules, act=delete)
    if json:
        print_json({"deleted": delete, **asdict(rules), **summary(found)})
        return
    for line in lines(found):
        out.print(line, markup=False, soft_wrap=True)
    if not delete:
        out.print("nothing was removed; --delete removes it", markup=False)


def seconds(text: str) -> float:
    """`90s`, `12h`, `7d` in seconds; ConfigError where it is none."""
    match = re.fullmatch(r"([0-9]+)([smhdw])", text)
    if not match:
        raise ConfigError(f"{text[:20]!r} is no time; write a number and one of s, m, h, d, w, for example 7d", field="--grace")
    return float(match[1]) * _UNITS[match[2]]


def summary(found: Found) -> dict[str, Any]:
    """What the JSON holds of a vacuum: the versions, and of each kind how many objects, their bytes and their keys."""
    kinds = {kind: getattr(found, kind) for kind in ("records", "files", "unfinished", "others", "waiting")}
    return {
        "versions": found.versions,
        **{
            kind: {"count": len(entries), "bytes": sum(e.size for e in entries), "keys": [e.key for e in entries]}
            for kind, entries in kinds.items()
        },
    }


def lines(found: Found) -> list[str]:
    """The same for people: the keys, then the sums."""
    titles = {
        "files": "files that nothing has named for a grace",
        "records": "records that no kept version has (their files go a grace later)",
        "unfinished": "writes of killed runs that never finished",
        "others": "old reports, attempts and probes",
        "waiting": "files that nothing names now; they go at a vacuum a grace later",
    }
    held = summary(found)
    keys = [key for kind in titles if kind != "waiting" for key in held[kind]["keys"]]
    sums = [f"{held[kind]['count']:>8}  {human(held[kind]['bytes']):>10}  {title}" for kind, title in titles.items()]
    versions = f"{len(found.versions):>8}  {'':>10}  old versions" + (f": {_ranges(found.versions)}" if found.versions else "")
    return [*keys, versions, *sums]


def _ranges(versions: list[int]) -> str:
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
