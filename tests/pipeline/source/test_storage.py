"""Stores: versions are checked, and only content is ever called corrupt."""

from __future__ import annotations

import errno
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import TidemillError
from pipeline.ledger.pieces import Shard
from pipeline.source.storage import Corrupt, check_unchanged, decoding, filesystem, open_shard


def _gzip_ends() -> None:
    gzip.decompress(gzip.compress(b"x" * 1000)[:-9])


def _zlib_is_wrong() -> None:
    zlib.decompress(b"not zlib")


def _parquet_is_cut() -> None:
    pq.ParquetFile(io.BytesIO(b"PAR1"))


def _zstd_is_wrong() -> None:
    pa.CompressedInputStream(pa.BufferReader(b"not a frame"), "zstd").read()


@pytest.mark.parametrize("decode", [_gzip_ends, _zlib_is_wrong, _parquet_is_cut, _zstd_is_wrong])
def test_what_decoders_refuse_is_corrupt(decode: Callable[[], None]) -> None:
    with pytest.raises(Corrupt), decoding():
        decode()


class _Faulty(io.BytesIO):
    def __init__(self, error: Exception) -> None:
        super().__init__(b"x" * 100)
        self.error = error

    def read(self, *_: Any) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("slow"),
        PermissionError(errno.EACCES, "no"),
        OSError(errno.EIO, "disk"),
        ConnectionResetError(),
        RuntimeError("x"),
    ],
)
def test_faults_of_the_store_pass_through_decoders_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, decoding():
        pq.ParquetFile(_Faulty(error))
    assert caught.value is error


def test_a_shard_that_changed_or_went_is_an_error(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    shard = shard_of(path)
    check_unchanged(shard, {})
    path.write_text("{} ")
    with pytest.raises(TidemillError, match=r"a\.jsonl changed during the run .*run again"):
        check_unchanged(shard, {})
    path.unlink()
    with pytest.raises(TidemillError, match="was removed during the run"):
        check_unchanged(shard, {})


def test_options_reach_the_store_and_nothing_is_cached(s3_server: Any) -> None:
    fs, path = filesystem("s3://bucket/a/b.jsonl", {**s3_server.storage_options, "use_listings_cache": True})
    assert path == "bucket/a/b.jsonl"
    assert fs.endpoint_url == s3_server.endpoint_url
    assert fs.dircache.use_listings_cache is False


def test_a_container_with_its_account_keeps_both() -> None:
    fs, path = filesystem("abfs://container@account.dfs.core.windows.net/in/a.jsonl", {"anon": True})
    assert (fs.account_name, path) == ("account", "container/in/a.jsonl")


def test_bytes_come_as_they_are(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = tmp_path / "a::b.jsonl"
    path.write_bytes(b"\x00\xff\n")
    for sequential in (True, False):
        with open_shard(shard_of(path), {}, sequential=sequential) as file:
            assert file.read() == b"\x00\xff\n"
