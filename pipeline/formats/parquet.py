"""The ledger's own Parquet files: nothing follows, since the commit is the switch."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.formats._place import Place, Standing
from pipeline.ledger.publish import Commit, head, read_commit
from pipeline.ledger.records import Record
from pipeline.table import dataset


def reads_as(schema: pa.Schema) -> pa.Schema:
    """Exactly `schema`."""
    return schema


def standing(place: Place) -> Standing | None:
    """The ledger's newest version."""
    newest = head(place.store)
    return Standing(newest.version, newest.version, newest) if newest else None


def prepare(place: Place, at: Standing | None, commit: Commit, records: Sequence[Record]) -> None:
    """Nothing: the files are there."""


def switch(place: Place, change: None) -> None:
    """Nothing: the ledger's commit was it."""


def read(place: Place, own: int) -> ds.Dataset:
    """The rows of a version."""
    return dataset(place.store, read_commit(place.store, own))
