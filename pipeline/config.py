"""The job as its author writes it: a frozen pydantic model of the YAML file, every default in one place.

`load("job.yaml", ["runtime.workers=2"])` reads plain YAML (`pipeline.plain_yaml`), applies overrides and validates; what is
wrong is a `ConfigError` with the field path, the value seen and, for an unknown key, the closest known one. Checks that need
the input or the model are made by `pipeline.planning`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import fsspec
import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

import operators.heads
from pipeline import plain_yaml
from pipeline.errors import ConfigError
from pipeline.kinds import did_you_mean, head_config, modules
from pipeline.overrides import apply_override
from pipeline.sections import Attention, Input, Output, Quality, Runtime, Section, Segments, Task
from pipeline.urls import check_url, protocol


class Config(Section):
    """A whole job. Everything has a default but `input.path`, `output.path` and one task with its head and model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "tidemill"
    input: Input
    segments: Segments = Segments()
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    output: Output
    quality: Quality = Quality()
    runtime: Runtime = Runtime()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, value: object) -> object:
        """What a task's own `segments` leave out is as for the whole job."""
        if (
            not isinstance(value, dict)
            or not isinstance(value.get("segments", {}), dict)
            or not isinstance(value.get("tasks"), dict)
        ):
            return value
        tasks = {
            name: {**task, "segments": {**value.get("segments", {}), **task["segments"]}}
            if isinstance(task, dict) and isinstance(task.get("segments"), dict)
            else task
            for name, task in value["tasks"].items()
        }
        return {**value, "tasks": tasks}

    @model_validator(mode="after")
    def _names(self) -> Config:
        taken = {name: f"column {name}" for name in ("_shard", "_row", "id", "n_tokens", "n_segments", "truncated")}
        for where, names in (("input.keep", list(self.input.keep)), ("tasks", list(self.tasks))):
            for name in names:
                if name in taken:
                    raise ValueError(f"{where}: column {name!r} is already the output's ({taken[name]}); choose another name")
                if name.startswith("__") or not name:
                    raise ValueError(f"{where}: column {name!r}: names that are empty or start with '__' are reserved")
                taken[name] = f"{where}.{name}"
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back to an equal Config."""
        plain = self.model_dump(mode="json")
        for task in plain["tasks"].values():
            task.update(task.pop("settings"))
        return plain

    @property
    def output_options(self) -> dict[str, Any]:
        """fsspec options of the output."""
        if self.output.storage_options is not None:
            return self.output.storage_options
        same = protocol(self.output.path) == protocol(self.input.paths[0])
        return self.input.storage_options if same else {}


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read, override and validate the config at `path` (a local path or an allowed fsspec URL). ConfigError on anything wrong."""
    try:
        check_url(str(path))
    except ValueError as error:
        raise ConfigError(str(error), field="CONFIG") from None
    try:
        with fsspec.open(str(path), "rb") as file:
            text = file.read(plain_yaml.LARGEST + 1).decode("utf-8")
    except Exception as error:  # each store's library raises its own
        raise ConfigError(f"cannot read {path}: {type(error).__name__}; give the path of a YAML file", field="CONFIG") from error
    try:
        raw = plain_yaml.read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}; a config is a mapping of input, tasks, output, ...")
    return from_dict(raw, overrides)


def from_dict(raw: dict[str, Any], overrides: list[str] | None = None) -> Config:
    """A Config from plain data, with overrides applied; ConfigError on anything wrong."""
    for override in overrides or []:
        raw = apply_override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors(include_url=False))) from None


def _explain(error: ErrorDetails) -> str:
    """One line for one pydantic error: field path, what is wrong, the value seen."""
    location = [
        str(part) for part in error["loc"] if not re.match(r"^(function-|constrained-|literal\[|tuple\[|str$|int$)", str(part))
    ]
    field = ".".join(location) or "config"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown key{did_you_mean(location[-1], _known_keys(location))}"
    if error["type"] == "missing":
        return f"{field}: is missing and has no default"
    value = error.get("input")
    plain = isinstance(value, (str, int, float, bool, type(None))) and "://" not in str(value)
    # What stands below storage_options may be a secret, wrong as it is there.
    shown = plain and error["type"] != "value_error" and "storage_options" not in location
    return f"{field}: {message}, got {value!r}" if shown else f"{field}: {message}"


def _known_keys(location: list[str]) -> list[str]:
    """The keys allowed where the last key of `location` stands."""
    if location[0] == "tasks" and len(location) > 2:
        for part, below in (("segments", Segments), ("attention", Attention)):
            if part in location[2:-1]:
                return list(below.model_fields)
        settings = {name for kind in modules(operators.heads) for name in head_config(kind).model_fields}
        return [*(name for name in Task.model_fields if name != "settings"), *settings]
    model: Any = Config
    for part in location[:-1]:
        model = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
    return list(getattr(model, "model_fields", {}))
