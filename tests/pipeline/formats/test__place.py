"""fsspec's options in the words of object_store."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.formats._place import locate
from pipeline.ledger.store import FileStore, FsspecStore, Store


def at(url: str) -> Store:
    """A store that nobody asks for objects."""
    return FsspecStore(url, None, url.partition("://")[2])


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "options", "found", "known"),
    [
        ("s3://b/t", {}, "s3://b/t", {"aws_region": "us-east-1"}),
        (
            "s3://b/t",
            {"endpoint_url": "http://minio:9000", "anon": True},
            "s3://b/t",
            {
                "aws_endpoint_url": "http://minio:9000",
                "allow_http": "true",
                "aws_skip_signature": "true",
                "aws_region": "us-east-1",
            },
        ),
        (
            "s3://b/t",
            {"client_kwargs": {"endpoint_url": "https://store", "region_name": "eu-1"}, "anon": False},
            "s3://b/t",
            {"aws_endpoint_url": "https://store", "aws_region": "eu-1"},
        ),
        ("gcs://b/t/u", {"project": "p"}, "gs://b/t/u", {}),
        ("az://c/t", {"account_name": "acc"}, "az://c/t", {"azure_storage_account_name": "acc"}),
        ("abfs://c@acc.dfs.core.windows.net/t", {}, "az://c/t", {"azure_storage_account_name": "acc"}),
    ],
)
def test_known_options(url: str, options: dict[str, Any], found: str, known: dict[str, str]) -> None:
    place = locate(at(url), options)
    assert (place.url, place.options) == (found, known)


def test_the_environment_names_the_endpoint_and_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store")
    monkeypatch.setenv("AWS_REGION", "eu-1")
    assert locate(at("s3://b/t"), {}).options == {"aws_endpoint_url": "http://store", "allow_http": "true"}


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("s3://b/t", {"client_kwargs": {"verify": False}}, "client_kwargs.verify"),
        ("gs://b/t", {"endpoint_url": "http://x"}, "endpoint_url"),
        ("az://b/t", {"b": 1, "a": 2}, "a, b"),
    ],
)
def test_others_are_refused_by_name(url: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"output.storage_options: {named}: only format parquet"):
        locate(at(url), options)


def test_a_local_path_needs_none() -> None:
    assert locate(FileStore("/x/y"), {"anything": 1}).url == "/x/y"
