"""JSON files of models, read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

_JSON_NAMES: dict[type, str] = {dict: "an object", list: "a list", int: "a whole number", str: "a string"}


def whole_number(config: dict[str, Any], names: tuple[str, ...], directory: Path) -> int:
    """The first of these entries of the config.json in `directory`. ValueError where it is no whole number above 0."""
    value = next((config[n] for n in names if n in config), None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{directory}/config.json: {' or '.join(names)} is {value!r}; a whole number above 0 is needed")
    return value


def entry(config: dict[str, Any], key: str, kind: type[_T], file: Path) -> _T | None:
    """An entry of a file that may also be null or missing."""
    value = config.get(key)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{file}: {key} is {value!r}; {_JSON_NAMES[kind]} is needed")
    return value


def read_json(path: Path, kind: type = object) -> Any:
    """The JSON in `path`, which is to be of this kind; None where there is no such file. ValueError where it is not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} does not hold {_JSON_NAMES[kind]}, as it must")  # noqa: TRY004 -- not a wrong argument
    return value
