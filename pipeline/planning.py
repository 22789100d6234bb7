"""From a config to a plan: everything that can be checked before a worker starts, and all that `auto` resolves to.

`make_plan` reads the model's JSON files (no weights), the table's head commit, and the footers of the shards with work to
do. What is wrong is a `ConfigError` with its field path.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from operators.devices import Device, choose
from pipeline import sink
from pipeline.backends import check_backend, choose_precision, device_of, find_exports
from pipeline.config import Config
from pipeline.errors import ConfigError, Incomplete, TidemillError
from pipeline.following import LEDGER, check_format
from pipeline.ledger.pieces import Shard, Span, Todo, in_order
from pipeline.ledger.publish import Commit, Draft, commit_schema, encode_schema, head, manifest_records
from pipeline.ledger.records import Record, find_work, read_records
from pipeline.ledger.store import Store, open_store
from pipeline.models import Model, check_model, head_columns, head_fields, share
from pipeline.placement import Placement, Wish
from pipeline.recipe import Recipe, TaskRecipe
from pipeline.remote import is_transient
from pipeline.runtime import compiles, limits, parity_sample, token_budget, tolerance
from pipeline.source.listing import Listing, list_shards
from pipeline.source.planning import Pins, SourcePlan, plan_source
from pipeline.source.reading import ReadRecipe

SEMANTICS = 2
"""Version of what the operators compute; raised whenever a value in the output would change."""


@dataclass(frozen=True)
class Plan:
    """All that a run needs to know."""

    config: Config
    base: Commit | None
    base_records: list[Record]
    """Records of the head commit, empty where there is none."""
    listing: Listing
    source: SourcePlan
    models: dict[str, Model]
    device: Device
    precision: str
    reasons: dict[str, str]
    """Why each `auto` became what it is."""
    fingerprint: dict[str, Any]
    generation: str
    known: dict[str, Record]
    """Records of this generation, by piece id."""
    todos: list[Todo]
    """Spans with work left, the biggest first."""
    recipe: Recipe

    @property
    def pins(self) -> dict[str, Any]:
        """What `auto` resolved to, which format follows, and the hub's commits of the models by task, for the table's commit."""
        revisions = {name: m.repository.revision for name, m in self.models.items() if m.repository.revision}
        # Left out where there are none, as in tables made before there was a choice.
        format_ = {} if self.config.output.format == LEDGER else {"format": self.config.output.format}
        pins = {"piece_bytes": self.source.piece_bytes, "precision": self.precision, **format_}
        return {**pins, "revisions": revisions} if revisions else pins

    @property
    def weights_bytes(self) -> int:
        """Bytes of all models' weights that a worker holds, as they are on disk; with the parity test also the reference's."""
        weights = sum({(m.repository.path, m.recipe.top_k): m.repository.weights_bytes for m in self.models.values()}.values())
        return 2 * weights if self.recipe.parity_sample else weights

    def place(self, engine: ModuleType) -> Placement:
        """Workers and their resources on `engine`, which is started for it."""
        runtime = self.config.runtime
        pieces = sum(max(1, t.span.weight // t.span.piece_bytes) if t.span.rows is None else 1 for t in self.todos)
        wish = Wish(runtime.workers, runtime.stages, self.weights_bytes, len(self.todos), pieces)
        placement: Placement = engine.placement(self.device.kind, wish)
        return placement


def make_plan(config: Config) -> Plan:
    """Check and resolve everything. ConfigError (exit 2) on anything wrong."""
    check_backend(config)
    models = share({name: check_model(config, name, task) for name, task in config.tasks.items()})
    layouts = {name: model.layout for name, model in models.items()}
    settings = config.input.model_copy(update={"keep": config.input.keep | head_columns(config, models)})
    fields = head_fields(config, models)
    store, base = table_head(config)
    records = manifest_records(store, base) if base else []
    device, reasons = _device(config)
    precision, reasons["precision"] = choose_precision(config, layouts, device, base)
    exports = find_exports(config, layouts, precision)
    _check_limit(config, base)
    listing = list_shards(config.input, config.output.path)
    pins = Pins(base.pins.get("piece_bytes"), sink.kept_schema(commit_schema(base))) if base else Pins()
    source = plan_source(settings, listing, pins, _settled(base, records, config.input.limit), fields)
    schema = _schema(config, models, source)
    check_format(config.output.format, store, config.output_options, schema)
    fingerprint = _fingerprint(config, models, precision, schema)
    if exports and exports.digests:  # calibration changes values
        fingerprint["exports"] = sorted(exports.digests.values())
    generation = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    if base and generation != base.generation:
        # Everything is done again, so every shard is opened again.
        source = plan_source(settings, listing, pins, {}, fields)
    current = {r.piece: r for r in records} if base and base.generation == generation else {}
    known = {**current, **read_records(store, generation, set(current))}
    run_id = uuid.uuid4().hex[:16]
    todos = in_order(find_work(source.spans, known), run_id)
    recipe = Recipe(
        run_id=run_id,
        generation=generation,
        store=store,
        schema=schema,
        read=_read_recipe(config, source),
        tasks=tuple(_task(config, name, model) for name, model in models.items()),
        device=device.kind,
        precision=precision,
        backend=config.runtime.backend,
        exports=exports,
        tokens_per_pack=token_budget(config, device),
        compile=compiles(config, device, sum(todo.span.weight for todo in todos)),
        max_restarts=config.runtime.max_restarts,
        parity_sample=parity_sample(config, precision),
        weight=sum(todo.span.weight for todo in todos),
        tolerance=tolerance(config, precision),
        limits=limits(config),
    )
    return Plan(
        config, base, records, listing, source, models, device, precision, reasons, fingerprint, generation, known, todos, recipe
    )


def _task(config: Config, name: str, model: Model) -> TaskRecipe:
    task, head = config.tasks[name], model.head
    return TaskRecipe(
        name=name,
        head=task.head,
        settings=task.settings.model_dump(),
        model=model.recipe,
        view=model.view,
        wants_offsets=head.wants_offsets,
        wants_text=head.wants_text,
        columns=tuple(head.columns),
    )


def table_head(config: Config) -> tuple[Store, Commit | None]:
    """The table's store and head commit; a store that cannot be read is a ConfigError."""
    try:
        store = open_store(config.output.path, config.output_options, config.output.single_writer)
        return store, head(store)
    except TidemillError:
        raise
    except Exception as error:  # each store's library raises its own
        if is_transient(error) and isinstance(error, OSError):  # there is a store, and it answered with a fault
            raise Incomplete(
                f"the store of {config.output.path} failed: {type(error).__name__}; run the same command again"
            ) from error
        raise ConfigError(
            f"cannot read the store: {type(error).__name__}; check the path, the credentials in the environment and whether the "
            "extra for the protocol (s3, gcs, azure) is installed",
            field="output.path",
        ) from error


def draft(plan: Plan, closed: list[Record]) -> Draft:
    """What the run wants to publish, from its closed books."""
    limit = plan.config.input.limit
    return Draft(
        run_id=plan.recipe.run_id,
        generation=plan.generation,
        fingerprint=plan.fingerprint,
        # A limit that nothing was beyond is none: the table holds all rows.
        pins={**plan.pins, "limit": limit if limit is not None and sum(r.rows_in for r in closed) >= limit else None},
        schema=encode_schema(plan.recipe.schema),
        records=closed,
        shards=frozenset(s.key for s in plan.listing.shards),
        keep_removed=plan.config.output.removed == "keep",
        base=plan.base.version if plan.base else 0,
    )


def _device(config: Config) -> tuple[Device, dict[str, str]]:
    offered = None
    if config.runtime.engine == "ray" and os.environ.get("RAY_ADDRESS"):
        offered = engine_of(config).devices()
    try:
        device = choose(device_of(config), offered)
    except ValueError as error:
        raise ConfigError(str(error), field="runtime.device") from error
    return device, {"device": device.reason}


def _schema(config: Config, models: dict[str, Model], source: SourcePlan) -> pa.Schema:
    first = next(iter(models.values())).view
    own_counts = [name for name, m in models.items() if m.view != first]
    keep = pa.schema([source.keep.field(name) for name in config.input.keep])
    schema = sink.output_schema(keep, {name: m.head.type for name, m in models.items()}, own_counts)
    for name, count in Counter(schema.names).items():
        if count > 1:
            raise ConfigError(
                f"the output would have two columns {name!r}; rename a task or leave out the kept column", field="tasks"
            )
    return schema


def _fingerprint(config: Config, models: dict[str, Model], precision: str, schema: pa.Schema) -> dict[str, Any]:
    """All that changes values; not paths, workers, packs or device."""
    return {
        "semantics": SEMANTICS,
        "precision": precision,
        "backend": config.runtime.backend,
        "input": {"text": config.input.text, "id": config.input.id, "max_document": config.input.max_document},
        "columns": [f"{field.name}: {field.type}" for field in schema],
        "tasks": {
            name: {
                "head": config.tasks[name].head,
                "settings": config.tasks[name].settings.model_dump(mode="json"),
                "weights": m.repository.weights_fingerprint,
                "tokenizer": m.repository.tokenizer_fingerprint,
                "windows": asdict(m.view.windowing),
                # Left out where it is full, so that tables made before it could be chosen keep their generation.
                **({"attention": config.tasks[name].attention.model_dump()} if m.recipe.top_k else {}),
            }
            for name, m in models.items()
        },
    }


def _check_limit(config: Config, base: Commit | None) -> None:
    """A limited run mirrors its few rows: it may grow a table that a smaller limit made, but never shrink one."""
    limit, held = config.input.limit, base.pins.get("limit") if base else None
    if base and limit is not None and (held is None or held > limit):
        raise ConfigError(
            f"the table at output.path holds {'all rows' if held is None else f'the first {held} rows'}, and a run limited to "
            f"{limit} would shrink it; give another output.path to try a config",
            field="input.limit",
        )


def _settled(base: Commit | None, records: list[Record], limit: int | None) -> dict[tuple[str, str], list[Span]]:
    """The spans of shards that the table holds whole, by shard key and version: they are not opened again.

    Shards that could not be read are opened again, and a limited run looks at every shard it counts."""
    if base is None or limit is not None or base.pins.get("limit") is not None:
        return {}
    weights: Counter[tuple[str, str, int, int | None, int]] = Counter()
    for r in records:
        weights[r.span] += int(r.statistics.get("text_bytes", 0))
    unreadable = {(r.shard, r.version) for r in records if "unreadable" in r.quarantined}
    spans: dict[tuple[str, str], list[Span]] = {}
    for (key, version, start, stop, piece_bytes), weight in sorted(weights.items(), key=lambda item: item[0][:3]):
        if (key, version) not in unreadable:
            spans.setdefault((key, version), []).append(Span(Shard(key, "", version, 0), start, stop, piece_bytes, weight=weight))
    return spans


def _read_recipe(config: Config, source: SourcePlan) -> ReadRecipe:
    return ReadRecipe(
        text=config.input.text,
        id=config.input.id,
        keep=source.keep,
        max_document=config.input.max_document,
        format=config.input.format,
        storage_options=config.input.storage_options,
    )


def engine_of(config: Config) -> ModuleType:
    """The module `pipeline.engines.<runtime.engine>`; imported late, since Ray is only needed by its own engine."""
    return importlib.import_module(f"pipeline.engines.{config.runtime.engine}")
