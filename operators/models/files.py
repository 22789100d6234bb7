"""JSON files of models, read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

_JSON_NAMES: dict[type, str] = {dict: "an object", list: "a list", int: "a whole number", str: "a string"}

_LARGEST = 64 * 2**20
"""Bytes of a file of JSON; the index of a model's weights is the largest."""
_LARGEST_NUMBER = 2**53
"""Beyond it JSON's numbers are not exact."""


def whole_number(config: dict[str, Any], names: tuple[str, ...], directory: Path) -> int:
    """The first of these entries of the config.json in `directory`. ValueError where it is no whole number above 0."""
    value = next((config[n] for n in names if n in config), None)
    if not isinstance(value, int) or not 1 <= value <= _LARGEST_NUMBER:
        shown = repr(value)[:40]
        raise ValueError(f"{directory}/config.json: {' or '.join(names)} is {shown}; a whole number above 0 is needed")
    return value


def entry(config: dict[str, Any], key: str, kind: type[_T], file: Path) -> _T | None:
    """An entry of a file that may also be null or missing."""
    value = config.get(key)
    if value is not None and (type(value) is not kind or (isinstance(value, int) and abs(value) > _LARGEST_NUMBER)):
        raise ValueError(f"{file}: {key} is {repr(value)[:40]}; {_JSON_NAMES[kind]} is needed")
    return value


def read_json(path: Path, kind: type = object) -> Any:
    """The JSON in `path`, which is to be of this kind; None where there is no such file. ValueError where it is not."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        value = json.loads(content.decode()) if len(content) <= _LARGEST else None
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON") from error
    if len(content) > _LARGEST:
        raise ValueError(f"{path} has more than {_LARGEST} bytes, which no config has")
    if not isinstance(value, kind):
        raise ValueError(f"{path} does not hold {_JSON_NAMES[kind]}, as it must")  # noqa: TRY004 -- not a wrong argument
    return value
