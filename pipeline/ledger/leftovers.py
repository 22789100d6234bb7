"""What killed writers leave and no list shows: temporary files on a disk, multipart uploads on S3.

Google Cloud Storage and Azure drop unfinished uploads after a week by themselves, and show them to nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.ledger.store import Entry, FileStore, FsspecStore, Store
from pipeline.remote import retried

FOLDERS = ("data", "quarantine", "_records", "_manifests", "_commits", "_runs", "_attempts", "_probe", "_vacuum")
"""The ledger's own. Whatever else lies at the table's path belongs to others."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def unfinished(store: Store) -> list[Entry]:
    """Writes in the ledger's folders that have not ended, those at work included; `modified` is when they were begun."""
    if isinstance(store, FileStore):
        return list(_temporary_files(store))
    if isinstance(store, FsspecStore) and store.base.startswith("s3://"):
        return [entry for entry in _uploads(store) if entry.key.split("/")[0] in FOLDERS]
    return []


def discard(store: Store, entries: Sequence[Entry]) -> None:
    """Remove some of `unfinished`; those that ended meanwhile are passed over."""
    if isinstance(store, FsspecStore):
        for entry in entries:
            bucket, _, path = f"{store.root}/{entry.key}".partition("/")
            with suppress(FileNotFoundError):
                retried(partial(store.fs.call_s3, "abort_multipart_upload", Bucket=bucket, Key=path, UploadId=entry.upload))
    else:
        store.delete_many([entry.key for entry in entries])


def _temporary_files(store: FileStore) -> Iterator[Entry]:
    root = Path(store.root)
    for path in (path for folder in FOLDERS for path in (root / folder).rglob(".*.tmp")):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield Entry(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _uploads(store: FsspecStore) -> Iterator[Entry]:
    bucket, _, folder = store.root.partition("/")
    below = f"{folder}/" if folder else ""
    page: dict[str, Any] = {}
    while True:
        found = retried(partial(store.fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=below, **page))
        for upload in found.get("Uploads", []):
            yield Entry(upload["Key"].removeprefix(below), 0, upload["Initiated"].timestamp(), upload["UploadId"])
        if not found.get("IsTruncated"):
            return
        page = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}
