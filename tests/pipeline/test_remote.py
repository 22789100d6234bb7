"""Which faults pass, how often a request is made again, and reads that give all bytes or raise."""

from __future__ import annotations

import errno
import io

import aiohttp
import botocore.exceptions
import fsspec
import pytest
import requests
from gcsfs.retry import HttpError
from hypothesis import given
from hypothesis import strategies as st

from pipeline import remote
from pipeline.errors import ConfigError, Incomplete
from pipeline.ledger.store import Unknown
from pipeline.remote import RemoteFile, bounded, is_outage, is_transient, retried


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate"),
        OSError(getattr(errno, "EREMOTEIO", errno.EIO), "InternalError"),
        TimeoutError("slow"),
        ConnectionResetError(),
        Unknown("cannot tell"),
        aiohttp.ClientPayloadError("not enough data"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="x"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
        botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        requests.exceptions.ProxyError(),
        HttpError({"code": 503, "message": "busy"}),
        HttpError({"code": 429, "message": "slow down"}),
    ],
)
def test_faults_that_pass(error: Exception) -> None:
    assert is_transient(error)
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no such key"),
        FileExistsError("there"),
        PermissionError(errno.EACCES, "denied"),
        OSError(errno.EINVAL, "At least one of the pre-conditions did not hold"),
        OSError("a decoder's"),
        ConfigError("wrong"),
        Incomplete("failed already"),
        ValueError("wrong"),
        botocore.exceptions.NoCredentialsError(),
        HttpError({"code": 401, "message": "who are you"}),
    ],
)
def test_refusals_that_stay(error: Exception) -> None:
    assert not is_transient(error)
    assert not is_outage(error)


def test_a_full_disk_is_an_outage_that_no_repetition_ends() -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert (is_transient(error), is_outage(error)) == (False, True)


def test_a_request_is_made_again_until_it_works_or_the_attempts_end() -> None:
    errors: list[Exception] = [TimeoutError(), ConnectionResetError(), OSError(errno.EBUSY, "busy")]
    left, pauses = list(errors), list[float]()

    def request() -> str:
        if left:
            raise left.pop(0)
        return "done"

    assert retried(request, pauses.append) == "done"
    assert len(pauses) == len(errors)
    left = [*errors, TimeoutError("the last")]
    with pytest.raises(TimeoutError, match="the last"):
        retried(request, pauses.append)
    left = [FileNotFoundError(), TimeoutError()]
    with pytest.raises(FileNotFoundError):
        retried(request, pauses.append)
    assert len(left) == 1


def test_no_attempt_begins_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BUDGET_SECONDS", -1.0)
    calls: list[None] = []

    def request() -> None:
        calls.append(None)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retried(request, lambda _: None)
    assert len(calls) == 1


def test_only_file_systems_that_know_it_are_given_a_bound() -> None:
    assert bounded(fsspec.filesystem("memory")) == {}
    s3 = fsspec.filesystem("s3", anon=True)
    assert bounded(s3) == {"timeout": remote.REQUEST_SECONDS}
    assert bounded(s3, 10 * remote.SLOWEST_BYTES) == {"timeout": remote.REQUEST_SECONDS + 10}


class _Bytes:
    """A file system with one object, which counts its answers and spoils those that `spoil` names."""

    def __init__(self, content: bytes, spoil: dict[int, Exception | int] | None = None) -> None:
        self.content, self.spoil, self.answers = content, spoil or {}, 0

    def cat_file(self, _: str, start: int, end: int) -> bytes:
        self.answers += 1
        spoiled = self.spoil.get(self.answers)
        if isinstance(spoiled, Exception):
            raise spoiled
        return self.content[start : end if spoiled is None else start + spoiled]


Step = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 40)), st.tuples(st.sampled_from(["set", "end", "current"]), st.integers(-30, 30))
)


@given(st.binary(max_size=60), st.integers(0, 20), st.lists(Step, max_size=20))
def test_reads_as_any_file(content: bytes, ahead: int, steps: list[tuple[str, int]]) -> None:
    ours, plain = RemoteFile(_Bytes(content), "x", len(content), ahead), io.BytesIO(content)
    for step, value in steps:
        if step == "read":
            assert ours.read(value) == plain.read(value)
        else:
            whence = {"set": io.SEEK_SET, "current": io.SEEK_CUR, "end": io.SEEK_END}[step]
            position = max(0, {"set": 0, "current": plain.tell(), "end": len(content)}[step] + value)
            assert ours.seek(value, whence) == plain.seek(position) == ours.tell()


@pytest.mark.parametrize("spoiled", [3, 0, TimeoutError(), OSError("Forbidden, without a number")])
def test_an_answer_that_falls_short_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, spoiled: Exception | int) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))
    fs = _Bytes(b"0123456789", {1: spoiled, 2: spoiled})
    assert RemoteFile(fs, "x", 10).read() == b"0123456789"
    assert fs.answers == 3
    fs = _Bytes(b"0123456789", dict.fromkeys(range(1, 9), spoiled))
    with pytest.raises(OSError, match=r"^$|the store sent|Forbidden") as caught:
        RemoteFile(fs, "x", 10).read()
    # One without a number would pass for a decoder's.
    assert type(caught.value) is not OSError or caught.value.errno == errno.EIO


def test_reading_ahead_fetches_each_byte_once() -> None:
    fs = _Bytes(bytes(range(100)))
    file = RemoteFile(fs, "x", 100, ahead=30)
    assert b"".join(iter(lambda: file.read(7), b"")) == bytes(range(100))
    assert fs.answers == 3
