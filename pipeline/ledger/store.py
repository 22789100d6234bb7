"""Objects under one URL, with the one operation that exactly-once stands on: create-only writes.

    local, NFS       temporary file, fsync, os.link (fails where the name exists), fsync of the folder
    S3               PUT with If-None-Match: *          (s3fs)
    Google Cloud     insert with ifGenerationMatch=0    (gcsfs)
    Azure            upload with overwrite=False        (adlfs)

For any other store fsspec checks and then writes, which guards nothing when two runs write at once: `open_store` refuses it
unless the config promises a single writer. No renames of what others may see, no locks, no clocks.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec

from pipeline.errors import ConfigError
from pipeline.ledger.folders import make_folder, sync_folder, unless_missing
from pipeline.remote import bounded, retried

CREATE_ONLY = frozenset({"s3", "gs", "gcs", "az", "abfs"})
"""Object stores whose fsspec library really makes `mode="create"` a condition that the server checks."""

_READERS = 32
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Exists(Exception):
    """`create` lost: the key is there already. It may be our own, where a library repeated a request that had worked."""


class Unknown(TimeoutError):
    """`create` ended without an answer (timeout, 5xx): the object is there or not, or comes yet. Read before writing again."""


@dataclass(frozen=True)
class Entry:
    """An object, or (see `leftovers`) what a killed writer left of one."""

    key: str
    size: int
    modified: float
    """Seconds since 1970, by the store's clock."""
    upload: str | None = None
    """Id of a multipart upload that was not finished."""


class Store(Protocol):
    """Keys are relative and separated by '/'. Pickles, so that it can travel to workers."""

    def put(self, key: str, data: bytes) -> None:
        """Write, whole or not at all. For keys that nobody else writes."""

    def create(self, key: str, data: bytes) -> None:
        """Write a key that does not exist. Raises Exists, or Unknown where nothing is known."""

    def get(self, key: str) -> bytes:
        """The object; FileNotFoundError where there is none."""

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The objects, fetched side by side."""

    def find_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of the objects that are there, fetched side by side."""

    def list(self, prefix: str) -> list[str]:
        """All keys below the folder `prefix`, sorted; empty where there are none. Never from a cache."""

    def entries(self, prefix: str) -> Sequence[Entry]:
        """As `list`, with sizes and times."""

    def delete(self, key: str) -> None:
        """Remove the object, if it is there. Nothing that a commit or a record names is ever removed by a run."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove the objects that are there, side by side."""

    def url(self, key: str) -> str:
        """Absolute path or URL of `key`, for fsspec."""


def open_store(url: str, storage_options: dict[str, Any] | None = None, single_writer: bool = False) -> Store:
    """The store below `url` (a path or fsspec URL, which need not exist yet).

    `single_writer` replaces create-only writes by check-then-write, on any store. ConfigError for a store that has no
    create-only write, unless `single_writer` is set.
    """
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    if protocol == "file":
        return FileStore(os.path.abspath(url.removeprefix("file://")), single_writer)
    if protocol not in CREATE_ONLY and not single_writer:
        raise ConfigError(
            f"{protocol}:// has no create-only write, so two runs at once could lose rows; write to a local path or to "
            f"{', '.join(sorted(CREATE_ONLY))}, or set output.single_writer: true and never run two jobs on this table at once",
            field="output.path",
        )
    options = {**(storage_options or {}), "use_listings_cache": False}
    fs, root = fsspec.url_to_fs(url, **options)
    return FsspecStore(url.rstrip("/"), fs, root.rstrip("/"), single_writer)


@dataclass(frozen=True)
class FileStore:
    """A folder on a local disk or a shared file system that has hard links."""

    root: str
    single_writer: bool = False

    def put(self, key: str, data: bytes) -> None:
        temporary, path = self._write_temporary(key, data)
        os.replace(temporary, path)
        sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> None:
        if self.single_writer:
            if os.path.exists(self.url(key)):
                raise Exists(key)
            return self.put(key, data)
        temporary, path = self._write_temporary(key, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise Exists(key) from None
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise ConfigError(
                    f"the file system of {self.root!r} has no hard links, which create-only writes need; write elsewhere, or set "
                    "output.single_writer: true and never run two jobs on this table at once",
                    field="output.path",
                ) from error
            raise Unknown(error.errno, f"cannot tell whether {key} was created: {error.strerror}") from error
        finally:
            temporary.unlink()
        sync_folder(path.parent)

    def get(self, key: str) -> bytes:
        return Path(self.url(key)).read_bytes()

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return _get_many(self, keys)

    def find_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        return _find_many(self, keys)

    def list(self, prefix: str) -> list[str]:
        walk = os.walk(self.url(prefix), onerror=unless_missing)
        found = (os.path.join(folder, name) for folder, _, names in walk for name in names if name[0] != ".")
        return sorted(os.path.relpath(path, self.root).replace(os.sep, "/") for path in found)

    def entries(self, prefix: str) -> Sequence[Entry]:
        return [entry for key in self.list(prefix) if (entry := self._entry(key))]

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.url(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        _delete_many(self, keys)

    def _entry(self, key: str) -> Entry | None:
        try:
            status = os.stat(self.url(key))
        except FileNotFoundError:  # removed since it was listed
            return None
        return Entry(key, status.st_size, status.st_mtime)

    def url(self, key: str) -> str:
        return os.path.join(self.root, key)

    def _write_temporary(self, key: str, data: bytes) -> tuple[Path, Path]:
        """A synced file beside the final path, under a name that `list` does not show."""
        path = Path(self.url(key))
        make_folder(path.parent)
        temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # on a full disk, what is there of it would keep it full
            temporary.unlink(missing_ok=True)
            raise
        return temporary, path


@dataclass(frozen=True)
class FsspecStore:
    """A prefix in an object store."""

    base: str
    """URL as configured."""
    fs: Any
    root: str
    """The same as the file system spells it, without protocol."""
    single_writer: bool = False

    def put(self, key: str, data: bytes) -> None:
        retried(lambda: self.fs.pipe_file(self._path(key), data, **bounded(self.fs, len(data))))

    def create(self, key: str, data: bytes) -> None:
        if self.single_writer:
            if retried(lambda: self.fs.exists(self._path(key), **bounded(self.fs))):
                raise Exists(key)
            return self.put(key, data)
        try:
            self.fs.pipe_file(self._path(key), data, mode="create", **bounded(self.fs, len(data)))
        except FileExistsError:
            raise Exists(key) from None
        except Exception as error:  # each library has errors of its own, and none of them says that nothing was written
            if _precondition_failed(error):
                raise Exists(key) from None
            raise Unknown(f"cannot tell whether {key} was created: {type(error).__name__}: {error}") from error

    def get(self, key: str) -> bytes:
        data: bytes = retried(lambda: self.fs.cat_file(self._path(key), **bounded(self.fs)))
        return data

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return _get_many(self, keys)

    def find_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        return _find_many(self, keys)

    def list(self, prefix: str) -> list[str]:
        found = retried(lambda: self.fs.find(self._path(prefix.rstrip("/"))))
        return sorted(path.removeprefix(f"{self.root}/") for path in found)

    def entries(self, prefix: str) -> Sequence[Entry]:
        found = retried(lambda: self.fs.find(self._path(prefix.rstrip("/")), detail=True))
        return sorted((self._entry(path, info) for path, info in found.items()), key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            retried(lambda: self.fs.rm_file(self._path(key), **bounded(self.fs)))

    def delete_many(self, keys: Sequence[str]) -> None:
        _delete_many(self, keys)

    def _entry(self, path: str, info: dict[str, Any]) -> Entry:
        modified = next(info[name] for name in ("LastModified", "mtime", "last_modified", "updated", "created") if info.get(name))
        if isinstance(modified, str):
            modified = datetime.fromisoformat(modified)
        seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
        return Entry(path.removeprefix(f"{self.root}/"), int(info["size"]), seconds)

    def url(self, key: str) -> str:
        return f"{self.base}/{key}"

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"


def _get_many(store: Store, keys: Sequence[str]) -> list[bytes]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(store.get, keys))


def _find_many(store: Store, keys: Sequence[str]) -> dict[str, bytes]:
    def find(key: str) -> bytes | None:
        try:
            return store.get(key)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        return {key: data for key, data in zip(keys, pool.map(find, keys), strict=True) if data is not None}


def _delete_many(store: Store, keys: Sequence[str]) -> None:
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(store.delete, keys))


def _precondition_failed(error: Exception) -> bool:
    """s3fs knows HTTP 412 only from servers that also name the condition; botocore's error below it has the plain code."""
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") in {"PreconditionFailed", "412"}
