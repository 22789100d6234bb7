"""Where a table lies, told to libraries that have an object store of their own: fsspec's options in the words of object_store.

Credentials are not passed on: these libraries read them from the same environment (AWS_*, GOOGLE_*, AZURE_*) or role.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError
from pipeline.ledger.store import Store
from pipeline.urls import protocol


@dataclass(frozen=True)
class Place:
    """The root of a table."""

    store: Store
    url: str
    """A local path, or a URL that object_store knows."""
    options: dict[str, str]
    """object_store's names and values."""


@dataclass(frozen=True)
class Standing:
    """What a format holds now."""

    version: int
    """The ledger's version that its rows are of."""
    own: int
    """The format's own number for that."""
    handle: Any
    """The format's table as it was read; a change is made against exactly this state, or not at all."""


def locate(store: Store, options: dict[str, Any]) -> Place:
    """The place of `store`'s table; `options` are fsspec's. ConfigError names an option that has no counterpart."""
    url = store.url("").rstrip("/")
    kind = protocol(url)
    if kind == "file":
        return Place(store, url, {})
    known, rest = _TRANSLATORS[kind](url, dict(options))
    if rest:
        raise ConfigError(
            f"{', '.join(sorted(rest))}: only format parquet knows this option; set it by the environment instead, or take "
            "output.format: parquet",
            field="output.storage_options",
        )
    for alias, name in (("gcs://", "gs://"), ("abfs://", "az://")):
        if url.startswith(alias):
            container = urlsplit(url).netloc.partition("@")[0]
            url = f"{name}{container}{urlsplit(url).path}"
    return Place(store, url, {name: value for name, value in known.items() if value})


def _s3(url: str, options: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    client = dict(options.pop("client_kwargs", None) or {})
    endpoint = options.pop("endpoint_url", None) or client.pop("endpoint_url", None)
    region = client.pop("region_name", None)
    if not region and not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
        region = "us-east-1"  # botocore's own default for stores at another address
    reached = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    known = {
        "aws_endpoint_url": reached,
        "aws_region": region or "",
        "allow_http": "true" if reached.startswith("http://") else "",
        "aws_skip_signature": "true" if options.pop("anon", False) else "",
    }
    return known, options | {f"client_kwargs.{name}": value for name, value in client.items()}


def _gcs(url: str, options: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    options.pop("project", None)  # only for listing and making buckets
    return {}, options


def _azure(url: str, options: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    host = urlsplit(url).netloc.partition("@")[2]  # abfs://container@account.dfs.core.windows.net/
    account = options.pop("account_name", None) or host.partition(".")[0]
    return {"azure_storage_account_name": account, "azure_skip_signature": "true" if options.pop("anon", False) else ""}, options


_TRANSLATORS: dict[str, Callable[[str, dict[str, Any]], tuple[dict[str, str], dict[str, Any]]]] = {
    **{"s3": _s3, "gs": _gcs, "gcs": _gcs},
    **{"az": _azure, "abfs": _azure},
}
