"""Reading a committed table: `open_output` for its rows, `committed_files` for its data files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from operators.schema import ID
from pipeline import quarantine
from pipeline.errors import ConfigError, TidemillError
from pipeline.ledger.publish import Commit, commit_schema, head, manifest_records, read_commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import FsspecStore, Store, open_store
from pipeline.remote import RemoteFile
from pipeline.urls import check_url

_READERS = 16


def open_table(path: str, storage_options: dict[str, Any] | None = None, version: int | None = None) -> tuple[Store, Commit]:
    """The store and the commit (the newest, or `version`) of the table at `path`; ConfigError where there is none."""
    store = open_checked(path, storage_options or {})
    try:
        commit = head(store) if version is None else read_commit(store, version)
    except FileNotFoundError:
        commit = None
    except TidemillError:
        raise
    except Exception as error:  # each store's library raises its own
        raise ConfigError(f"cannot read the store: {type(error).__name__}; check path and credentials", field="output") from error
    if commit is None:
        which = "no committed table" if version is None else f"no version {version} of a table"
        raise ConfigError(f"there is {which} at {path!r}; give the output.path of a job that has run", field="output")
    return store, commit


def open_checked(path: str, storage_options: dict[str, Any], *, single_writer: bool = True) -> Store:
    """The store at a path that a user gave; ConfigError where it is no allowed URL, or where the store cannot be opened.

    `single_writer`: as `output.single_writer`; what only reads may promise it."""
    try:
        check_url(path)
    except ValueError as error:
        raise ConfigError(str(error), field="output") from error
    try:
        return open_store(path, storage_options, single_writer)
    except TidemillError:
        raise
    except Exception as error:  # each store's library raises its own
        raise ConfigError(f"cannot open the store: {type(error).__name__}; check path and credentials", field="output") from error


def committed_files(store: Store, commit: Commit, *, of_quarantine: bool = False) -> list[str]:
    """Keys, relative to the table, of the data files (or the quarantine files) of one version, in order of shard and position."""
    records = sorted(manifest_records(store, commit), key=lambda r: (r.shard, r.start, r.index))
    keys = (r.quarantine_file if of_quarantine else r.file for r in records)
    return [k for k in keys if k is not None]


def open_output(
    path: str, *, version: int | None = None, storage_options: dict[str, Any] | None = None, quarantined: bool = False
) -> ds.Dataset:
    """The committed rows at `path` as a `pyarrow.dataset.Dataset` with the pinned schema; `quarantined=True`: those set aside.

    `version` opens an older version. ConfigError where nothing was committed. It never sees a run that is not published.
    """
    store, commit = open_table(path, storage_options, version)
    return dataset(store, commit, quarantined=quarantined)


def dataset(store: Store, commit: Commit, *, quarantined: bool = False) -> ds.Dataset:
    """The rows of one version, or those set aside."""
    schema = quarantine.SCHEMA if quarantined else commit_schema(commit)
    return _dataset(store, committed_files(store, commit, of_quarantine=quarantined), schema)


def count_duplicate_ids(store: Store, records: list[Record]) -> int:
    """Rows of the table whose id another row has already: rows - distinct ids. Reads the id column of every data file."""

    def ids(record: Record) -> pa.ChunkedArray[Any]:
        # Read in this thread alone: Arrow's own threads may still hold a Python file while the interpreter goes down.
        with open_data(store, record) as file:
            return pq.ParquetFile(file, pre_buffer=False).read(columns=[ID], use_threads=False)[ID]

    with ThreadPoolExecutor(_READERS) as pool:
        columns = list(pool.map(ids, [r for r in records if r.file]))
    if not columns:
        return 0
    every = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    return len(every) - int(pc.count_distinct(every, mode="all").as_py())


def _dataset(store: Store, keys: list[str], schema: pa.Schema) -> ds.Dataset:
    if not keys:
        return ds.dataset(schema.empty_table())
    native = PyFileSystem(FSSpecHandler(store.fs)) if isinstance(store, FsspecStore) else LocalFileSystem()
    return ds.dataset([_path(store, key) for key in keys], filesystem=native, schema=schema, format="parquet")


def open_data(store: Store, record: Record) -> BinaryIO:
    """The data file of a piece, open for reading; the caller closes it."""
    path = _path(store, record.file or "")
    if isinstance(store, FsspecStore):
        return cast(BinaryIO, RemoteFile(store.fs, path, record.bytes))
    return open(path, "rb")


def _file_system(store: Store) -> fsspec.AbstractFileSystem:
    return store.fs if isinstance(store, FsspecStore) else fsspec.filesystem("file")


def _path(store: Store, key: str) -> str:
    path: str = _file_system(store)._strip_protocol(store.url(key))
    return path
