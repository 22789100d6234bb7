"""`key.path=value` on the command line: settings that win over the config file."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ConfigError
from pipeline.plain_yaml import scalar


def apply_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """`raw` with `a.b=value` set, the value read as YAML. ConfigError where it is no such pair."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError("an override is no key.path=value; write for example runtime.workers=2")
    value = scalar(text)
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        value = text  # a text with a colon in it, such as a prompt
    raw = dict(raw)
    node = raw
    for key in keys[:-1]:
        child = node.get(key)
        if child is not None and not isinstance(child, dict):
            raise ConfigError(f"override of {path}: {key!r} is a {type(child).__name__}, not a mapping")
        node[key] = dict(child or {})
        node = node[key]
    node[keys[-1]] = value
    return raw
