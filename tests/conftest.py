"""Fixtures for all tests: a real S3 server, and buckets in it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """A running S3 server. AWS_* in the environment hold credentials that it accepts, for child processes too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
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
