"""The sections of a job's config: frozen pydantic models, every default in one place. `pipeline.config` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

import operators.encoders
import operators.heads
import pipeline.formats
from pipeline.kinds import check_module, head_config, modules
from pipeline.urls import Options, Url, check_url

Size = Annotated[ByteSize, Field(gt=0)]


class Section(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


class Input(Section):
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


class Segments(Section):
    """How a document is cut into windows."""

    policy: Literal["window", "truncate", "error"] = "window"
    max_tokens: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    overlap: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    max_segments: Annotated[int, Field(gt=0)] | None = None


class Attention(Section):
    """Which keys of its window a query attends to: all of them, or the k with the largest scores."""

    kind: Literal["full", "topk"] = "full"
    k: Annotated[int, Field(gt=0)] = 16


class Task(Section):
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


class Output(Section):
    """Where the committed table lives."""

    path: Url
    format: str = "parquet"
    """A module of `pipeline.formats`."""
    removed: Literal["keep", "drop"] = "keep"
    single_writer: bool = False
    """Stand in for create-only writes on a store that has none, by promising that no other run writes."""
    storage_options: Options | None = None
    """As `input.storage_options`, which it defaults to where both are on the same protocol."""

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        check_module(pipeline.formats, value)
        return value


class Quality(Section):
    """What the run added is compared with what the last versions added."""

    drift: Literal["off", "warn", "hold"] = "warn"
    """hold: a run whose statistics drifted is not published (exit 4) until it is accepted."""
    psi: Annotated[float, Field(gt=0)] = 0.2
    """The population stability index that is a drift, where the documents are enough to tell it from chance."""
    versions: Annotated[int, Field(gt=0)] = 7
    min_documents: Annotated[int, Field(gt=0)] = 200
    """With fewer on either side there is no verdict."""

    @field_validator("drift", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # what YAML makes of off


class Runtime(Section):
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
    """Restarts of one encoder actor before the run gives up (exit 3), besides those that poison rows cost."""
    piece_timeout: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Seconds for reading, for preparing and for encoding a piece, each, before it is called a loop."""
    worker_memory: Literal["auto"] | Size = "auto"
    """Resident memory of one worker before it is called a runaway; auto: nine tenths of the machine's."""
    max_quarantine: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the input's rows that may be in quarantine; with more, or with all of them, nothing is published (exit 3)."""
    stuck_after: Literal["auto", "never"] | Annotated[float, Field(gt=0)] = "auto"
    """Seconds without a settled piece after which the run is given up (exit 3). auto: by the largest piece, and longer than it
    takes to find a poison row."""
    parity_sample: Annotated[int, Field(ge=0)] = 0
    """Documents that are encoded again by the reference; a run that is apart from it is held (exit 4)."""
    parity_similarity: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    parity_apart: Annotated[float, Field(ge=0, le=1)] = 0.02

    @field_validator("backend")
    @classmethod
    def _backend(cls, value: str) -> str:
        check_module(operators.encoders, value)
        return value
