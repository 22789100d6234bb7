"""The job as its author writes it: a frozen pydantic model of the YAML file, every default in one place.

`load("job.yaml", ["runtime.workers=2"])` reads by `yaml.safe_load`, applies overrides and validates; what is wrong is a
`ConfigError` with the field path, the value seen and, for an unknown key, the closest known one. Checks that need the input
or the model are made by `pipeline.planning`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

import operators.encoders
import operators.heads
from pipeline.errors import ConfigError
from pipeline.kinds import check_module, did_you_mean, head_config, modules
from pipeline.overrides import apply_override
from pipeline.urls import Options, Url, check_url, protocol

Size = Annotated[ByteSize, Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


class Input(_Model):
    """Where the documents are and which columns of them are read."""

    path: Url | tuple[Url, ...]
    format: Literal["auto", "parquet", "jsonl"] = "auto"
    text: str = "text"
    id: str | None = None
    keep: dict[str, str | None] = Field(default_factory=dict)
    """Column -> Arrow type as text, None where the type is pinned from the data."""
    limit: Annotated[int, Field(gt=0)] | None = None
    max_document: Size = ByteSize(64 * 2**20)
    piece: Literal["auto"] | Size = "auto"
    storage_options: Options = Field(default_factory=dict)

    @field_validator("path", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        if isinstance(value, list):
            if not value:
                raise ValueError("the list is empty; name at least one file, directory or glob")
            return tuple(value)
        return value

    @field_validator("keep", mode="before")
    @classmethod
    def _keep(cls, value: object) -> object:
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise ValueError("a list of keep names columns; with types it is a mapping, as in keep: {lang: string}")
        return dict.fromkeys(value) if isinstance(value, list) else value

    @field_validator("keep")
    @classmethod
    def _keep_types(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        from pipeline.source.types import parse_type  # pyarrow is only wanted where a type is spelled out

        for name, spelled in value.items():
            if name.startswith("__"):
                raise ValueError(f"column {name!r}: names that start with '__' are reserved")
            if spelled is not None:
                parse_type(spelled)
        return value

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class Segments(_Model):
    """How a document is cut into windows."""

    policy: Literal["window", "truncate", "error"] = "window"
    max_tokens: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    overlap: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    max_segments: Annotated[int, Field(gt=0)] | None = None


class Attention(_Model):
    """Which keys of its window a query attends to: all of them, or the k with the largest scores."""

    kind: Literal["full", "topk"] = "full"
    k: Annotated[int, Field(gt=0)] = 16


class Task(_Model):
    """One task: a head with its model. `settings` is the head's own Config, validated by the head's module."""

    head: str
    model: str
    revision: str | None = None
    segments: Segments | None = None
    attention: Attention = Attention()
    settings: Any

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, dict) or isinstance(value.get("settings"), BaseModel):
            return value
        if "head" not in value:
            raise ValueError(f"head is missing; there are: {', '.join(modules(operators.heads))}")
        own = {k: value[k] for k in cls.model_fields if k in value and k != "settings"}
        rest = {k: v for k, v in value.items() if k not in own}
        return {**own, "settings": head_config(str(value["head"])).model_validate(rest)}

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        if "://" in value:
            return check_url(value)
        path = Path(value).expanduser()
        return str(path.absolute()) if path.is_dir() else value


class Output(_Model):
    """Where the committed table lives."""

    path: Url
    format: Literal["parquet"] = "parquet"
    removed: Literal["keep", "drop"] = "keep"
    single_writer: bool = False
    """Stand in for create-only writes on a store that has none, by promising that no other run writes."""
    storage_options: Options | None = None
    """As `input.storage_options`, which it defaults to where both are on the same protocol."""


class Runtime(_Model):
    """Where and how fast; nothing here but `precision` and `backend` changes a value."""

    device: Literal["auto", "npu", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    precision_similarity: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """The cosine to float32 that `precision: auto` must keep. Where one is given and half precision is taken, a sample of
    documents is compared with the reference, and a run that keeps less is held (exit 4)."""
    backend: str = "torch"
    exports: Url | None = None
    """A directory of what `tidemill export` made, which every worker sees."""
    engine: Literal["ray", "local"] = "ray"
    compile: Literal["auto", "on", "off"] = "auto"
    """Layers by torch.compile; auto: on CUDA, for long jobs."""
    tokens_per_pack: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    workers: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Of all machines of the job together, in any currency; the report then says what a million documents cost."""
    stages: Literal["auto", "fused", "split"] = "auto"
    """auto: fused into the encoder's actor on CPUs, CPU stages of their own on GPUs and NPUs."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of one encoder actor before the run gives up (exit 3)."""
    parity_sample: Annotated[int, Field(ge=0)] = 0
    """Documents that are encoded again by the reference; a run that is apart from it is held (exit 4)."""
    parity_similarity: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    parity_apart: Annotated[float, Field(ge=0, le=1)] = 0.02

    @field_validator("backend")
    @classmethod
    def _backend(cls, value: str) -> str:
        check_module(operators.encoders, value)
        return value


class Config(_Model):
    """A whole job. Everything has a default but `input.path`, `output.path` and one task with its head and model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "tidemill"
    input: Input
    segments: Segments = Segments()
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    output: Output
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
            text = file.read().decode("utf-8")
    except Exception as error:  # each store's library raises its own
        raise ConfigError(f"cannot read {path}: {type(error).__name__}; give the path of a YAML file", field="CONFIG") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {getattr(error, 'problem', 'syntax error')}") from error
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
