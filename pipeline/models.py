"""The models of a job as planning sees them: files, layout, head and windows; no weights are loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import pyarrow as pa

from operators.encoding import Head
from operators.inputs import Companion
from operators.models.layout import Layout, read_layout
from operators.models.repository import Repository, resolve
from operators.schema import ID, ROW, SHARD
from operators.segmentation import Windowing, resolve_overlap
from operators.tokenization import Tokenizer
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.recipe import ModelRecipe, Tokenization, View
from pipeline.sections import Segments, Task
from pipeline.source.types import parse_type

_RESERVED = (SHARD, ROW, ID)

_DEFAULT_WINDOW = 512
"""Tokens of a window where neither the model's nor the tokenizer's files declare a limit."""


@dataclass(frozen=True)
class Model:
    """A task's model as planning sees it: files, layout, head and windows; no weights."""

    repository: Repository
    layout: Layout
    head: Head
    recipe: ModelRecipe
    view: View
    beside: int
    """Tokens of the longest second text that stands beside every document."""
    notes: tuple[str, ...]


def check_model(config: Config, name: str, task: Task) -> Model:
    """The model of a task, checked against its head and windows; ConfigError on anything that does not fit."""
    try:
        repository = resolve(task.model, task.revision)
        layout = read_layout(repository.path)
    except ValueError as error:
        raise ConfigError(str(error), field=f"tasks.{name}.model") from error
    try:
        head = importlib.import_module(f"operators.heads.{task.head}").Head(task.settings, layout)
        tokenizer = Tokenizer(layout.transformer_dir, prompt=head.prompt, lowercase=layout.do_lower_case)
    except ValueError as error:
        raise ConfigError(str(error), field=f"tasks.{name}") from error
    where = f"tasks.{name}.segments" if task.segments else "segments"
    if not tokenizer.frame.size:
        raise ConfigError("the tokenizer puts no special token around a text; choose a model that has one", field=f"tasks.{name}")
    try:
        frame = tokenizer.pair_frame() if head.companion else tokenizer.frame
    except ValueError as error:
        raise ConfigError(str(error), field=f"tasks.{name}.model") from error
    beside = _longest(tokenizer, head.companion)
    taken = frame.size + beside
    windowing, notes = _windowing(task.segments or config.segments, layout, tokenizer.model_max_length, taken, where)
    windowing = replace(windowing, capacity=windowing.capacity + beside, style=head.windows)
    padded = importlib.import_module(f"operators.encoders.{config.runtime.backend}").why_padded(layout)
    notes += (f"tasks.{name}: {padded}",) if padded else ()
    revision = repository.revision or task.revision
    model = ModelRecipe(task.model, revision, _top_k(config, name, task, layout), repository.fingerprint)
    view = View(Tokenization(model.full, head.prompt, tokenizer.fingerprint), windowing, head.companion)
    return Model(repository, layout, head, model, view, beside, notes)


def _top_k(config: Config, name: str, task: Task, layout: Layout) -> int | None:
    """What the task's attention asks of the encoder, None for full attention; ConfigError where the encoder has no top-k."""
    if task.attention.kind == "full":
        return None
    backend = importlib.import_module(f"operators.encoders.{config.runtime.backend}")
    # A backend without the function has full attention only.
    why_not = getattr(backend, "why_no_top_k", lambda _: f"backend {config.runtime.backend} has full attention only")
    if reason := why_not(layout):
        raise ConfigError(f"no top-k attention: {reason}; leave attention out", field=f"tasks.{name}.attention")
    return task.attention.k


def share(models: dict[str, Model]) -> dict[str, Model]:
    """The same models, with one tokenization where tokenizers of several agree."""
    first: dict[str, Tokenization] = {}
    shared = {}
    for name, model in models.items():
        tokenization = first.setdefault(model.view.tokenization.fingerprint, model.view.tokenization)
        shared[name] = replace(model, view=replace(model.view, tokenization=tokenization))
    return shared


def head_columns(config: Config, models: dict[str, Model]) -> dict[str, str]:
    """Columns that heads read beside the text, with their types as `input.keep` spells them. ConfigError on a conflict."""
    columns: dict[str, str] = {}
    for name, model in models.items():
        for column, type_ in model.head.columns.items():
            if column in _RESERVED or column.startswith("__"):
                raise ConfigError(f"a head cannot read column {column!r}, whose name is taken; rename it", field=f"tasks.{name}")
            spelled = columns.get(column) or config.input.keep.get(column) or str(type_)
            if parse_type(spelled) != type_:
                raise ConfigError(
                    f"head {config.tasks[name].head} reads column {column!r} as {type_}, but elsewhere it is to be {spelled}; "
                    "give one of them another column",
                    field=f"tasks.{name}",
                )
            columns[column] = spelled
    return columns


def head_fields(config: Config, models: dict[str, Model]) -> dict[str, str]:
    """Where the config names the columns that heads read and that are not kept, for errors about them."""
    columns = {column: f"tasks.{name}" for name, model in models.items() for column in model.head.columns}
    return {column: field for column, field in columns.items() if column not in config.input.keep}


def _longest(tokenizer: Tokenizer, companion: Companion | None) -> int:
    """Tokens of the longest companion, where they are known before any document is."""
    texts = companion.texts if companion else ()
    return int(tokenizer.tokenize(pa.array(texts, pa.large_string())).lengths.max(initial=0))


def _windowing(
    segments: Segments, layout: Layout, declared: int | None, taken: int, where: str
) -> tuple[Windowing, tuple[str, ...]]:
    """Window sizes that fit the model, or a ConfigError that names the numbers. `declared`: the tokenizer's limit; `taken`:
    tokens of a window that are not body."""
    limits = [n for n in (layout.max_positions, declared) if n]
    limit = min(limits) if limits else _DEFAULT_WINDOW
    notes: tuple[str, ...] = ()
    if segments.max_tokens == "auto":
        max_tokens = min(layout.max_seq_length or limit, limit)
    elif segments.max_tokens > (layout.max_positions or segments.max_tokens):
        raise ConfigError(
            f"{segments.max_tokens} tokens are more than the model's {layout.max_positions} positions",
            field=f"{where}.max_tokens",
        )
    else:
        max_tokens = segments.max_tokens
        if max_tokens > limit:
            notes = (f"{where}.max_tokens {max_tokens} is more than the {limit} that the tokenizer's files declare",)
    capacity = max_tokens - taken
    if capacity < 1:
        raise ConfigError(
            f"a window of {max_tokens} tokens has no room beside {taken} tokens of prompt, second text and special ones",
            field=f"{where}.max_tokens",
        )
    try:
        overlap = resolve_overlap(segments.overlap, capacity)
    except ValueError as error:
        raise ConfigError(str(error), field=f"{where}.overlap") from error
    return Windowing(capacity, overlap, segments.policy, segments.max_segments), notes
