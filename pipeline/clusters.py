"""Which Ray clusters are joined, and in which environment. Knows no Ray itself.

Whoever reaches an open Ray cluster can run code on it (ShadowRay, CVE-2023-48022). So one that reaches beyond this machine is
joined only with token authentication. Ray Data can be told by the environment to unpickle what stands in Parquet files; that
is refused.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from urllib.parse import urlsplit

import psutil

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
    """ConfigError where `address` (host:port, ray://host:port or http://host:port) is on another machine, and no token is asked
    for."""
    if not is_local(address) and not _with_token():
        raise _open(field)


def refuse_open_nodes(hosts: Iterable[str], field: str) -> None:
    """ConfigError where some node of a cluster is on another machine, and no token is asked for. Ray itself replaces a loopback
    address by the machine's own, so that an address alone does not tell."""
    if not all(map(_is_here, hosts)) and not _with_token():
        raise _open(field)


def is_local(address: str) -> bool:
    """Whether an address is on this machine, by its spelling alone: what a name resolves to today it may not tomorrow."""
    return _host(address) in ("auto", "local") or _is_here(_host(address))


def _with_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _open(field: str) -> ConfigError:
    return ConfigError(
        "the cluster reaches beyond this machine, and without a token whoever reaches it can run code there; start it with "
        "RAY_AUTH_MODE=token, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here",
        field=field,
    )


def _host(address: str) -> str:
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def _is_here(host: str) -> bool:
    try:
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        return False
    return host in {address.address for of_card in psutil.net_if_addrs().values() for address in of_card}
