"""A job as its workers get it: picklable, without weights, with everything that `auto` resolved to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from operators.segmentation import Windowing
from pipeline.errors import ConfigError
from pipeline.ledger.store import Store
from pipeline.source.reading import ReadRecipe


@dataclass(frozen=True)
class ModelRecipe:
    """Where a worker finds a model: what the config says, with the revision that was resolved at planning."""

    source: str
    revision: str | None


@dataclass(frozen=True)
class View:
    """One tokenization of the text with its windows; tasks that agree in it share it."""

    model: ModelRecipe
    prompt: str
    windowing: Windowing
    offsets: bool


@dataclass(frozen=True)
class TaskRecipe:
    """One output column: its head with its settings, its model, and the view it reads."""

    name: str
    head: str
    settings: dict[str, Any]
    model: ModelRecipe
    view: int


@dataclass(frozen=True)
class Recipe:
    """Everything a worker needs; picklable, without weights."""

    run_id: str
    generation: str
    store: Store
    schema: pa.Schema
    read: ReadRecipe
    views: tuple[View, ...]
    tasks: tuple[TaskRecipe, ...]
    device: str
    precision: str
    backend: str
    tokens_per_pack: int
    max_restarts: int

    @property
    def _stop_key(self) -> str:
        return f"_runs/{self.run_id}/stop"

    def announce(self) -> None:
        """Leave a first object of the run in the store; ConfigError where it cannot be written, before anything is encoded."""
        try:
            self.store.put(f"_runs/{self.run_id}/started.json", json.dumps({"generation": self.generation}).encode())
        except Exception as error:  # each store's library raises its own
            raise ConfigError(
                f"cannot write there: {type(error).__name__}; check the path and the credentials", field="output.path"
            ) from error

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
