"""Which Ray clusters are joined, and in which environment. Knows no Ray itself.

Whoever reaches an open Ray cluster can run code on it (ShadowRay, CVE-2023-48022). So one that listens beyond this machine is
joined only with token authentication. Ray Data can be told by the environment to unpickle what stands in Parquet files; that
is refused.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

UNPICKLING = (
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
)
"""Settings by which Ray Data runs code that comes with data."""


def refuse_unpickling() -> None:
    """ConfigError where the environment lets Ray Data unpickle what it reads."""
    for name in UNPICKLING:
        if os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no"):
            raise ConfigError("it lets files of the input run code; unset it here and on every node", field=name)


def refuse_open_cluster(address: str, field: str) -> None:
    """ConfigError where the cluster at `address` (host:port, ray://host:port or http://host:port) can be reached from elsewhere
    and is not asked for by a token."""
    if not is_local(address) and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ConfigError(
            "the cluster listens beyond this machine, and without a token whoever reaches it can run code there; start it with "
            "RAY_AUTH_MODE=token, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here",
            field=field,
        )


def is_local(address: str) -> bool:
    """Whether an address leads to this machine alone (what `auto` has found is to be looked at again)."""
    return _host(address) in ("auto", "local") or _is_loopback(_host(address))


def _host(address: str) -> str:
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    """By its spelling alone: a name that resolves to this machine today may not do so tomorrow."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
