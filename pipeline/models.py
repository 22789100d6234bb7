"""The models of a job as planning sees them: files, layout, head and windows; no weights are loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from operators.models.layout import Layout, read_layout
from operators.models.repository import Repository, resolve
from operators.segmentation import Windowing, resolve_overlap
from operators.tokenization import Tokenizer
from pipeline.config import Config, Segments, Task
from pipeline.errors import ConfigError
from pipeline.recipe import ModelRecipe, View

_DEFAULT_WINDOW = 512
"""Tokens of a window where neither the model's nor the tokenizer's files declare a limit."""


@dataclass(frozen=True)
class Model:
    """A task's model as planning sees it: files, layout, head and windows; no weights."""

    repository: Repository
    layout: Layout
    head: Any
    view: View
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
    windowing, notes = _windowing(task.segments or config.segments, layout, tokenizer, where)
    model = ModelRecipe(task.model, repository.revision or task.revision)
    return Model(repository, layout, head, View(model, head.prompt, windowing, head.wants_offsets), notes)


def _windowing(segments: Segments, layout: Layout, tokenizer: Tokenizer, where: str) -> tuple[Windowing, tuple[str, ...]]:
    """Window sizes that fit the model, or a ConfigError that names the numbers."""
    limits = [n for n in (layout.max_positions, tokenizer.model_max_length) if n]
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
    capacity = max_tokens - tokenizer.specials
    if capacity < 1:
        raise ConfigError(
            f"a window of {max_tokens} tokens has no room beside {tokenizer.specials} special and prompt tokens",
            field=f"{where}.max_tokens",
        )
    try:
        overlap = resolve_overlap(segments.overlap, capacity)
    except ValueError as error:
        raise ConfigError(str(error), field=f"{where}.overlap") from error
    return Windowing(capacity, overlap, segments.policy, segments.max_segments), notes
