"""URLs and storage options that a config may hold, also as pydantic types: allowed protocols, no chains, no credentials.

No message here repeats a URL or an option's value, since either may hold a password.
"""

from __future__ import annotations

import re
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


def protocol(url: str) -> str:
    """The fsspec protocol of a URL or a plain path (`file`)."""
    return url.split("://", 1)[0].lower() if "://" in url else "file"


def check_url(url: str) -> str:
    """`url` itself, if it is a plain path or a URL of an allowed protocol without credentials; otherwise ValueError.

    The message never repeats the URL, which may hold a password."""
    if "::" in url:
        raise ValueError("'::' URL chains are not allowed")
    if protocol(url) not in PROTOCOLS:
        raise ValueError(f"protocol {protocol(url)!r} is not allowed; use a path or one of {', '.join(PROTOCOLS)}")
    if "://" in url:
        parts = urlsplit(url)
        # abfs://container@account.host/ names a container before the @; anything with a colon there is a password.
        if parts.password is not None or (parts.username is not None and protocol(url) not in {"abfs"}):
            raise ValueError("the URL carries credentials; give them by the environment instead")
        if parts.query and _SECRET.search(parts.query):
            raise ValueError("the URL's query carries credentials; give them by the environment instead")
    return url


def refuse_secrets(options: dict[str, Any], where: str = "") -> dict[str, Any]:
    """`options` itself, unless a key or a URL in it looks like a credential: then ValueError."""
    for key, value in options.items():
        if _SECRET.search(str(key)) and str(key) not in _NOT_SECRET:
            raise ValueError(f"{where}{key!r} looks like a credential; give credentials by the environment instead")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                refuse_secrets(item, f"{where}{key}.")
            elif isinstance(item, str) and "://" in item and urlsplit(item).username is not None:
                raise ValueError(f"{where}{key!r} holds a URL with credentials; give them by the environment instead")
    return options


def _absolute(value: object) -> object:
    """A checked URL; a plain path becomes absolute, since workers and jobs run in other directories."""
    if not isinstance(value, str):
        return value
    check_url(value)
    return value if "://" in value else str(Path(value).expanduser().absolute())


Url = Annotated[str, Field(min_length=1), BeforeValidator(_absolute)]
Options = Annotated[dict[str, Any], AfterValidator(refuse_secrets)]
