"""A job as its workers get it: picklable, without weights, with everything that `auto` resolved to."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from operators.encoding import Head
from operators.exports import Exports
from operators.inputs import Companion
from operators.models.layout import Layout
from operators.segmentation import Windowing
from pipeline.errors import ConfigError, Incomplete, TidemillError
from pipeline.ledger.store import Exists, Store
from pipeline.limits import Limits
from pipeline.remote import is_transient, plain
from pipeline.source.reading import ReadRecipe


@dataclass(frozen=True)
class ModelRecipe:
    """Where a worker finds a model: what the config says, with the revision that was resolved at planning."""

    source: str
    revision: str | None
    top_k: int | None = None
    """Keys that a query attends to, as `operators.attention.topk`; None for full attention."""
    fingerprint: str = ""
    """`operators.models.repository.Repository.fingerprint` at planning: what a worker finds must be the same."""

    @property
    def full(self) -> ModelRecipe:
        """The same model with full attention: what tokenizers, layouts and the reference are found by."""
        return replace(self, top_k=None)


@dataclass(frozen=True)
class Tokenization:
    """One tokenization of the text; tasks whose tokenizers and prompts agree share it, also across models."""

    model: ModelRecipe
    """The model whose tokenizer is taken."""
    prompt: str
    fingerprint: str
    """`operators.tokenization.Tokenizer.fingerprint`."""


@dataclass(frozen=True)
class View:
    """Windows over one tokenization, with the second texts that stand in them; tasks that agree in it share it."""

    tokenization: Tokenization
    windowing: Windowing
    companion: Companion | None = None


@dataclass(frozen=True)
class TaskRecipe:
    """One output column: its head with its settings, its model, and the view it reads."""

    name: str
    head: str
    settings: dict[str, Any]
    model: ModelRecipe
    view: View
    wants_offsets: bool
    """As `operators.encoding.Head` has these three."""
    wants_text: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Pass:
    """One pass of an encoder over the windows of a view, for all tasks that share both."""

    model: ModelRecipe
    view: View
    tasks: tuple[TaskRecipe, ...]


@dataclass(frozen=True)
class Tolerance:
    """How far results may be from the reference's (`pipeline.parity`)."""

    similarity: float
    """A document less similar than this is apart from the reference."""
    apart: float
    """The share of the sample that may be apart."""


@dataclass(frozen=True)
class Recipe:
    """Everything a worker needs; picklable, without weights."""

    run_id: str
    generation: str
    store: Store
    schema: pa.Schema
    read: ReadRecipe
    tasks: tuple[TaskRecipe, ...]
    device: str
    precision: str
    backend: str
    exports: Exports | None
    """Of backends that need them."""
    tokens_per_pack: int
    compile: bool
    """Encoders compile their layers; only with backend torch."""
    max_restarts: int
    parity_sample: int
    """Documents that are compared with the reference, in all."""
    weight: int
    """Of all spans with work left: bytes of text."""
    tolerance: Tolerance
    limits: Limits

    @property
    def wants_text(self) -> bool:
        """Some head reads the texts themselves."""
        return any(task.wants_text for task in self.tasks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that heads read beside the text, each once."""
        return tuple(dict.fromkeys(column for task in self.tasks for column in task.columns))

    @property
    def text_decides(self) -> bool:
        """Documents with the same text have the same results: heads read nothing else that differs from row to row."""
        return not self.columns

    def wants_offsets(self, tokenization: Tokenization) -> bool:
        """Some head reads where the tokens of this tokenization are."""
        return any(task.wants_offsets for task in self.tasks if task.view.tokenization == tokenization)

    @property
    def tokenizations(self) -> tuple[Tokenization, ...]:
        """Each once, in the order of the tasks."""
        return tuple(dict.fromkeys(task.view.tokenization for task in self.tasks))

    @property
    def views(self) -> tuple[View, ...]:
        """Each once, in the order of the tasks."""
        return tuple(dict.fromkeys(task.view for task in self.tasks))

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes over each piece, in the order of the tasks."""
        shared = dict.fromkeys((task.model, task.view) for task in self.tasks)
        return tuple(
            Pass(model, view, tuple(t for t in self.tasks if (t.model, t.view) == (model, view))) for model, view in shared
        )

    def sample_of(self, weight: int) -> int:
        """Documents of a span of this weight that are compared with the reference: its share of the sample, rounded up."""
        return -(-self.parity_sample * max(1, weight) // max(1, self.weight))

    @property
    def _stop_key(self) -> str:
        return f"_runs/{self.run_id}/stop"

    def announce(self) -> None:
        """Leave a first object of the run in the store. ConfigError where it cannot be written, or where the store lets a
        create-only write replace it: two runs at once would lose rows there. Both before anything is encoded."""
        key, content = f"_runs/{self.run_id}/started.json", json.dumps({"generation": self.generation}).encode()
        try:
            self.store.put(key, content)
            self.store.create(key, content)
        except Exists:
            return
        except TidemillError:
            raise
        except Exception as error:  # each store's library raises its own
            if is_transient(error):
                raise Incomplete(f"the store failed: {plain(error)}; run the same command again") from error
            raise ConfigError(
                f"cannot write there: {plain(error)}; check the path and the credentials", field="output.path"
            ) from error
        raise ConfigError(
            "the store ignores the condition of create-only writes, so two runs at once could lose rows (`tidemill doctor CONFIG`"
            " looks closer). Write elsewhere, or set output.single_writer: true and never run two jobs on this table at once",
            field="output.path",
        )

    def ask_to_stop(self) -> None:
        """Leave a mark in the store that workers on every machine see before their next piece."""
        self.store.put(self._stop_key, b"{}")

    def stop_asked(self) -> bool:
        """Whether the mark is there."""
        try:
            self.store.get(self._stop_key)
        except FileNotFoundError:
            return False
        return True


def make_heads(share: Pass, layout: Layout) -> dict[str, Head]:
    """The heads of a pass by task, without weights."""
    heads: dict[str, Head] = {}
    for task in share.tasks:
        kind = importlib.import_module(f"operators.heads.{task.head}")
        heads[task.name] = kind.Head(kind.Config(**task.settings), layout)
    return heads
