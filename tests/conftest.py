"""Fixtures for all tests: servers of S3, Google Cloud Storage and Azure Blob Storage, and new places in them."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from tests.emulators.servers import Emulator, azure, google, why_no_azure

# Else gcsfs asks by gRPC, for a minute, what kind a bucket is; the emulator does not know.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@dataclass(frozen=True)
class S3:
    """moto's S3 server, speaking HTTP on this machine."""

    endpoint_url: str

    @property
    def storage_options(self) -> dict[str, Any]:
        """fsspec options to reach it; the credentials are in the environment."""
        return {"endpoint_url": self.endpoint_url}

    def make_bucket(self) -> str:
        """A new empty bucket; returns its name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", endpoint_url=self.endpoint_url).create_bucket(Bucket=name)
        return name


def _one_at_a_time(put: Callable[[S3Response], Any]) -> Callable[[S3Response], Any]:
    """moto looks whether the key is there, and then writes it; S3 does both in one step."""
    lock = threading.Lock()

    def put_alone(self: S3Response) -> Any:
        with lock:
            return put(self)

    return put_alone


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """A running S3 server. AWS_* in the environment hold credentials that it accepts, for child processes too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", _one_at_a_time(S3Response.put_object))
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield S3(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def s3_url(s3_server: S3) -> Callable[[], str]:
    """Makes `s3://<new bucket>/table`."""
    return lambda: f"s3://{s3_server.make_bucket()}/table"


@pytest.fixture(scope="session")
def gs_server() -> Iterator[Emulator]:
    """Google Cloud Storage, as an emulator; the environment leads there."""
    with google() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def az_server() -> Iterator[Emulator]:
    """Azure Blob Storage, as an emulator; the environment leads there."""
    why = why_no_azure()
    if why:
        pytest.skip(why)
    with azure() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@dataclass(frozen=True)
class Place:
    """Where a table can be made."""

    url: str
    storage_options: dict[str, Any]


@pytest.fixture(params=["local", "s3", "gs", "az"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A new place in each kind of store."""
    if request.param == "local":
        return Place(str(tmp_path / "table"), {})
    server = request.getfixturevalue(f"{request.param}_server")
    url = f"s3://{server.make_bucket()}/table" if request.param == "s3" else server.new_url()
    return Place(url, server.storage_options)
