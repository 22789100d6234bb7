"""URLs and storage options that a config may hold, also as pydantic types: allowed protocols, no chains, no credentials.

No message here repeats a URL or an option's value, since either may hold a password.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

PROTOCOLS = ("file", "s3", "gs", "gcs", "az", "abfs")
"""fsspec protocols that input, output and models may use."""

_SECRET = re.compile(
    r"key|secret|token|pass|pwd|credential|sas|\bsig\b|connection_string|cookie|authorization|signature", re.IGNORECASE
)
_NOT_SECRET = frozenset({"anon", "key_file"})
_METADATA_HOSTS = frozenset(
    {
        *("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"),
        *("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    }
)
"""Where clouds hand credentials to their machines, beside the link-local 169.254.0.0/16 and fe80::/10."""


def protocol(url: str) -> str:
    """The fsspec protocol of a URL or a plain path (`file`)."""
    return url.split("://", 1)[0].lower() if "://" in url else "file"


def check_url(url: str) -> str:
    """`url` itself, if it is a plain path or a URL of an allowed protocol without credentials; otherwise ValueError.

    The message never repeats the URL, which may hold a password."""
    if "::" in url:
        raise ValueError("'::' URL chains are not allowed")
    if url.lower().startswith("data:"):  # the one protocol that fsspec knows without slashes
        raise ValueError("protocol 'data' is not allowed; name a file")
    if protocol(url) not in PROTOCOLS:
        raise ValueError(f"protocol {protocol(url)!r} is not allowed; use a path or one of {', '.join(PROTOCOLS)}")
    if "://" in url:
        parts = urlsplit(url)
        # abfs://container@account.host/ names a container before the @; anything with a colon there is a password.
        if parts.password is not None or (parts.username is not None and protocol(url) not in {"abfs"}):
            raise ValueError("the URL carries credentials; give them by the environment instead")
        if parts.query and _SECRET.search(parts.query):
            raise ValueError("the URL's query carries credentials; give them by the environment instead")
        if _gives_credentials(parts.hostname):
            raise ValueError("the URL's host is a metadata service or link-local, which no store is")
    return url


def check_options(options: dict[str, Any], where: str = "") -> dict[str, Any]:
    """`options` itself, unless a key or a URL in it looks like a credential, or a host is one that gives credentials away: then
    ValueError."""
    for key, value in options.items():
        if _SECRET.search(str(key)) and str(key) not in _NOT_SECRET:
            raise ValueError(f"{where}{key!r} looks like a credential; give credentials by the environment instead")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                check_options(item, f"{where}{key}.")
            elif isinstance(item, str) and "://" in item and urlsplit(item).username is not None:
                raise ValueError(f"{where}{key!r} holds a URL with credentials; give them by the environment instead")
            elif isinstance(item, str) and _gives_credentials(_host(item)):
                raise ValueError(f"{where}{key!r} leads to a metadata service or a link-local host, which no store is")
    return options


def _host(text: str) -> str | None:
    """The host in a URL, or in what may be one without its scheme."""
    try:
        return urlsplit(text if "://" in text else f"//{text}").hostname
    except ValueError:  # brackets that hold no address
        return None


def _gives_credentials(host: str | None) -> bool:
    """Whether a host is where clouds hand credentials to their machines, however its address is spelled."""
    if host is None:
        return False
    host = host.rstrip(".").partition("%")[0].lower()
    if host in _METADATA_HOSTS:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))  # as libraries do: 0xa9fea9fe, 2852039166, 169.254.43518
        except (OSError, ValueError):
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_link_local or str(mapped or address) in _METADATA_HOSTS


def _absolute(value: object) -> object:
    """A checked URL; a plain path becomes absolute, since workers and jobs run in other directories."""
    if not isinstance(value, str):
        return value
    check_url(value)
    return value if "://" in value else str(Path(value).expanduser().absolute())


Url = Annotated[str, Field(min_length=1), BeforeValidator(_absolute)]
Options = Annotated[dict[str, Any], AfterValidator(check_options)]
