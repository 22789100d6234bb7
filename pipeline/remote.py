"""Requests to stores over a network: which faults pass, how often a request is made again, and how long one may take.

The libraries below (s3fs, gcsfs, adlfs) repeat some requests by themselves and give up on others at once: a 503 that is not
called SlowDown, a body that breaks off, a refused connection. And what they repeat has no bound in time. So every request of
the pipeline passes through here. `create` of the ledger's store alone is never repeated blindly.
"""

from __future__ import annotations

import errno
import io
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import TidemillError

REQUEST_SECONDS = 60.0
"""What one request may take, with all that the library repeats of it."""
SLOWEST_BYTES = 128 * 2**10
"""Bytes a second below which a transfer counts as stuck."""
ATTEMPTS = 4
_PAUSES = (0.5, 1.0, 2.0)
_BUDGET_SECONDS = 60.0
"""No further attempt is begun later than this after the first."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PASSING = frozenset(
    {errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.EAGAIN, errno.EPIPE}
    | {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT}
)
_LIBRARIES = frozenset({"botocore", "aiobotocore", "aiohttp", "gcsfs", "azure", "urllib3", "requests", "google"})
"""Whose errors are faults of the connection, unless they carry a status that says otherwise."""
_SETTLED = frozenset({"FileExpired", "NoCredentialsError", "ParamValidationError"})

T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the store was busy, did not answer, or broke off. Not: it said no."""
    if isinstance(error, (TidemillError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)):
        return False
    status = next((s for name in ("status_code", "status", "code") if isinstance(s := getattr(error, name, None), int)), None)
    if type(error).__name__ in _SETTLED or (status is not None and 400 <= status < 500 and status not in {408, 429}):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    if any(kind.__module__.split(".")[0] in _LIBRARIES for kind in type(error).__mro__):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def is_outage(error: BaseException) -> bool:
    """Whether the store, not the piece of work, is what failed: it does not answer, or has no room left."""
    return is_transient(error) or (isinstance(error, OSError) and error.errno in _FULL)


def plain(error: BaseException) -> str:
    """One line about a fault of a store, which never quotes a document: class and first line."""
    first = (str(error).splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def retried(request: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """What `request` returns, made again after transient faults; raises its last error. For requests that may be repeated."""
    started = time.monotonic()
    for seconds in _PAUSES:
        try:
            return request()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - started > _BUDGET_SECONDS:
                raise
        pause(seconds * random.uniform(0.5, 1.0))  # only spreads attempts  # nosec B311
    return request()


def bounded(fs: Any, size: int = 0) -> dict[str, float]:
    """Keyword arguments that bound a call of the file system `fs` which moves `size` bytes; none where it has no such bound."""
    return {"timeout": REQUEST_SECONDS + size / SLOWEST_BYTES} if getattr(fs, "async_impl", False) else {}


class RemoteFile(io.RawIOBase):
    """An object of known size as a file to read. Every read gives all bytes that are there, or raises: OSError for an answer
    that falls short, and never an OSError without number, which a decoder could be taken to have raised.

    `ahead`: bytes fetched beyond what is asked for, for reading in order."""

    def __init__(self, fs: Any, path: str, size: int, ahead: int = 0) -> None:
        self._fs = fs
        self._path = path
        self._size = size
        self._ahead = ahead
        self._position = 0
        self._start = 0
        self._held = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._position + size)
        start = self._position
        if start >= stop:
            return b""
        if not (self._start <= start and stop <= self._start + len(self._held)):
            known = self._held[start - self._start :] if self._start <= start <= self._start + len(self._held) else b""
            fetched = retried(lambda: self._fetch(start + len(known), min(self._size, stop + self._ahead)))
            self._start, self._held = start, known + fetched
        self._position = stop
        data = self._held[start - self._start : stop - self._start]
        if not self._ahead:
            self._held = b""
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            data: bytes = self._fs.cat_file(self._path, start=start, end=stop, **bounded(self._fs, stop - start))
        except OSError as error:
            if type(error) is OSError and error.errno is None:
                raise OSError(errno.EIO, str(error) or "the store failed") from error
            raise
        if len(data) != stop - start:
            raise OSError(errno.EIO, f"the store sent {len(data)} bytes of {stop - start}")
        return data
