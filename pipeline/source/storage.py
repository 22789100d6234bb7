"""Opening shards on any allowed store, their versions, and telling corrupt content from faults of the store."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.errors import ConfigError, TidemillError
from pipeline.ledger.pieces import Shard
from pipeline.remote import RemoteFile, bounded, retried
from pipeline.urls import protocol

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}
"""Protocol -> the extra that installs its store; protocols of one store share it."""
_READ_AHEAD = 8 * 2**20


class Corrupt(Exception):
    """The content of a shard cannot be decoded; reading it again will not help. The message holds no content."""


@contextmanager
def decoding() -> Iterator[None]:
    """Raise `Corrupt` for what decoders say about content; faults of the store pass through as they are."""
    try:
        yield
    except (pa.ArrowInvalid, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Corrupt(_first_line(error)) from error
    except UnicodeDecodeError as error:
        raise Corrupt("a name in the footer is not UTF-8") from error
    except OSError as error:
        # Arrow raises plain OSError without a number; those of a store have a number or a class of their own.
        if type(error) is not OSError or error.errno is not None:
            raise
        raise Corrupt(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def filesystem(url: str, options: Mapping[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system of `url` and the path in it. ConfigError where its package is not installed."""
    try:
        kind = fsspec.get_filesystem_class(protocol(url))
    except ImportError as error:
        extra = EXTRAS.get(protocol(url), protocol(url))
        raise ConfigError(
            f"{protocol(url)}:// needs a package that is not here; pip install 'tidemill[{extra}]'", field="input.path"
        ) from error
    # Not by `url_to_fs`, which would take '::' in a file's name for a chain of URLs.
    fs = kind(**{**kind._get_kwargs_from_urls(url), **options, "use_listings_cache": False})
    return fs, kind._strip_protocol(url)


def open_shard(shard: Shard, options: Mapping[str, Any], *, sequential: bool) -> BinaryIO:
    """The shard's bytes. `sequential` reads ahead; without it nothing is read but what is asked for."""
    fs, path = filesystem(shard.url, options)
    if protocol(shard.url) != "file":
        return cast(BinaryIO, RemoteFile(fs, path, shard.size, _READ_AHEAD if sequential else 0))
    file: BinaryIO = fs.open(path, "rb")
    return file


def check_unchanged(shard: Shard, options: Mapping[str, Any]) -> None:
    """TidemillError if the shard is no longer the version that was listed."""
    fs, path = filesystem(shard.url, options)
    try:
        version = version_of(fs, path, retried(lambda: fs.info(path, **bounded(fs))))
    except FileNotFoundError:
        raise TidemillError(f"shard {shard.label} was removed during the run; run again") from None
    if version != shard.version:
        raise TidemillError(f"shard {shard.label} changed during the run (version {shard.version}, now {version}); run again")


def version_of(fs: AbstractFileSystem, path: str, info: Mapping[str, Any]) -> str:
    """What changes when the file's content does: its ETag, or size and modification time."""
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    if "mtime" in info:  # a local file; its info has the time as a float, which is too coarse
        status = os.stat(path)
        return f"{status.st_size}-{status.st_mtime_ns}"
    return f"{info['size']}-{fs.modified(path).isoformat()}"
