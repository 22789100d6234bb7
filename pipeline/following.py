"""The table format that the config names follows the ledger: after a commit it is brought up to that version.

The ledger stays the truth: a format that is behind (a run was killed between the two, a store did not answer) is one atomic
switch away from the newest version, and the next run makes it, also where it has nothing else to do.
"""

from __future__ import annotations

import importlib
import random
import re
import time
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.dataset as ds

import pipeline.formats
from pipeline.errors import ConfigError, TidemillError
from pipeline.formats._place import Place, Standing, locate
from pipeline.kinds import check_module
from pipeline.ledger.publish import Commit, manifest_records
from pipeline.ledger.records import Record
from pipeline.ledger.store import Store

LEDGER = "parquet"
"""The format that needs no following: its files and commits are the ledger's own."""
ATTEMPTS = 5
"""Tries to bring a format up to a version, where others come first or the outcome stays unknown."""


class Format(Protocol):
    """What a module of `pipeline.formats` has."""

    def reads_as(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the rows as readers of the format see them. ConfigError for what it cannot hold."""

    def standing(self, place: Place) -> Standing | None:
        """What the format holds now; None where it holds nothing."""

    def prepare(self, place: Place, at: Standing | None, commit: Commit, records: Sequence[Record]) -> Any:
        """Write what a version needs, unseen by readers."""

    def switch(self, place: Place, change: Any) -> None:
        """Make that visible, as a whole and only on top of what `prepare` was given; raises where another came first."""

    def read(self, place: Place, own: int) -> ds.Dataset:
        """The rows of the format's version `own`."""


def find_format(name: str) -> Format:
    """The module `pipeline.formats.<name>`. ConfigError where there is none, or where its library is not installed."""
    try:
        check_module(pipeline.formats, name)
        module: Any = importlib.import_module(f"pipeline.formats.{name}")
    except ValueError as error:
        raise ConfigError(str(error), field="output.format") from None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name} needs the package {error.name}, which is not installed: pip install 'tidemill[{name}]'",
            field="output.format",
        ) from None
    found: Format = module
    return found


def check_format(name: str, store: Store, options: dict[str, Any], schema: pa.Schema) -> None:
    """Before any worker starts: the format is installed, can hold the schema, and its library reaches the store."""
    if name == LEDGER:
        return
    format_ = find_format(name)
    format_.reads_as(schema)
    place = locate(store, options)
    try:
        format_.standing(place)
    except Exception as error:  # each format's library raises its own
        raise ConfigError(f"cannot read the table's {name}: {_reason(error)}", field="output.format") from error


def follow(name: str, store: Store, options: dict[str, Any], commit: Commit) -> dict[str, Any]:
    """Bring the format up to `commit`; returns what the report says of it. Run twice, or by two runs at once, it happens once.

    `options`: fsspec's. TidemillError where it stays behind; the ledger's version is published all the same."""
    if name == LEDGER:
        return {"format": name, "format_version": commit.version}
    format_, place = find_format(name), locate(store, options)
    failure: Exception = TimeoutError("other writers came first")
    for attempt in range(ATTEMPTS + 1):
        try:
            at = format_.standing(place)
            if at and at.version >= commit.version:
                return {"format": name, "format_version": at.own}
            if attempt < ATTEMPTS:
                format_.switch(place, format_.prepare(place, at, commit, manifest_records(store, commit)))
        except TidemillError:
            raise
        except Exception as error:  # noqa: BLE001 -- each library raises its own; whether it was done is read before the next try
            failure = error
            time.sleep(random.uniform(0.05, 0.15) * 2**attempt)  # only spreads attempts  # nosec B311
    raise TidemillError(
        f"version {commit.version} is published, but {name} does not hold it yet: {_reason(failure)}. Run the same command "
        "again: nothing is encoded again"
    ) from failure


def followed_by(pins: dict[str, Any]) -> str:
    """The format that the table's runs keep, as the pins of its commit say."""
    return str(pins.get("format", LEDGER))


def standing_of(store: Store, options: dict[str, Any], commit: Commit) -> dict[str, Any]:
    """`format`, and its own version that holds `commit`: None where it holds another or cannot be read here."""
    name = followed_by(commit.pins)
    if name == LEDGER:
        return {"format": name, "format_version": commit.version}
    try:
        at = find_format(name).standing(locate(store, options))
    except Exception:  # noqa: BLE001 -- books are shown whether or not the format's library is here
        at = None
    return {"format": name, "format_version": at.own if at and at.version == commit.version else None}


def _reason(error: Exception) -> str:
    """Type and first line, without queries of URLs, which may hold a signature."""
    line = re.sub(r"\?\S+", "?...", (str(error).splitlines() or [""])[0])
    return f"{type(error).__name__}: {line[:300]}"
