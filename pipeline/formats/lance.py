"""Lance: a dataset at `_lance/table.lance`, one fragment for each data file of the ledger, with exactly its types.

Only files that are new are converted; fragments of those that stay are named again. The schema's metadata says which version
of the ledger the rows are of, and a version of the dataset is made on top of exactly the one that was read, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import lance
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from lance.fragment import FragmentMetadata, LanceFragment

from pipeline.errors import TidemillError
from pipeline.formats._place import Place, Standing
from pipeline.ledger.publish import Commit, commit_schema, manifest_records, read_commit
from pipeline.ledger.records import Record

FOLDER = "_lance/table.lance"
_VERSION, _OWN = b"tidemill.version", b"tidemill.own"
_CONVERTERS = 4
"""Files in memory at once."""


@dataclass(frozen=True)
class Change:
    """A version of the dataset to be."""

    base: lance.LanceDataset | None
    """The state it is made against; None: there is no dataset yet."""
    schema: pa.Schema
    fragments: list[FragmentMetadata]
    """Of all data files, in the ledger's order."""


def reads_as(schema: pa.Schema) -> pa.Schema:
    """Exactly `schema`."""
    return schema


def standing(place: Place) -> Standing | None:
    """The dataset's state; None where there is none. TidemillError where somebody else made it."""
    if not place.store.list(f"{FOLDER}/_versions"):
        return None
    dataset = _open(place)
    metadata = dataset.schema.metadata or {}
    if _VERSION not in metadata:
        raise TidemillError(f"{place.url}/{FOLDER} is a dataset that tidemill did not make; give another output.path")
    return Standing(int(metadata[_VERSION]), int(metadata[_OWN]), dataset)


def prepare(place: Place, at: Standing | None, commit: Commit, records: Sequence[Record]) -> Change:
    """Convert the data files that have no fragment yet, a few at a time."""
    known = _fragments(place, at) if at else {}
    schema = commit_schema(commit)

    def fragment(file: str) -> FragmentMetadata:
        return known[file] if file in known else _convert(place, file, schema)

    with ThreadPoolExecutor(_CONVERTERS) as pool:
        fragments = list(pool.map(fragment, _files(records)))
    own = at.handle.version + 1 if at else 1
    metadata = {_VERSION: str(commit.version).encode(), _OWN: str(own).encode()}
    return Change(at.handle if at else None, schema.with_metadata({**(schema.metadata or {}), **metadata}), fragments)


def switch(place: Place, change: Change) -> None:
    """Commit the version; an error of Lance's where another came first, since nothing is retried on top of that."""
    lance.LanceDataset.commit(
        f"{place.url}/{FOLDER}",
        lance.LanceOperation.Overwrite(change.schema, change.fragments),
        read_version=0 if change.base is None else change.base.version,  # a dataset without rows is falsy
        storage_options=place.options,
        max_retries=0,
    )


def read(place: Place, own: int) -> ds.Dataset:
    """The rows of a version of the dataset."""
    return _open(place, own)


def _open(place: Place, own: int | None = None) -> lance.LanceDataset:
    return lance.dataset(f"{place.url}/{FOLDER}", version=own, storage_options=place.options)


def _files(records: Sequence[Record]) -> list[str]:
    """Data files in the order of shards and positions, which is also that of fragments."""
    return [r.file for r in sorted(records, key=lambda r: (r.shard, r.start, r.index)) if r.file]


def _fragments(place: Place, at: Standing) -> dict[str, FragmentMetadata]:
    """The fragment of each data file as our last commit had them; none where that or the ledger's version is gone."""
    try:
        files = _files(manifest_records(place.store, read_commit(place.store, at.version)))
    except FileNotFoundError:  # removed as too old
        return {}
    if at.own != at.handle.version and at.own not in {v["version"] for v in at.handle.versions()}:
        return {}  # cleaned up after changes by others
    fragments = [fragment.metadata for fragment in _open(place, at.own).get_fragments()]
    return dict(zip(files, fragments, strict=True))


def _convert(place: Place, file: str, schema: pa.Schema) -> FragmentMetadata:
    # Read in this thread alone, as in pipeline.table.
    table = pq.ParquetFile(pa.BufferReader(place.store.get(file)), pre_buffer=False).read(use_threads=False)
    # "overwrite" numbers the fields by the schema alone, so that fragments of one schema fit together.
    return LanceFragment.create(f"{place.url}/{FOLDER}", table.cast(schema), mode="overwrite", storage_options=place.options)
