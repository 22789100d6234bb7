"""Exports of a job's models, as `tidemill export` makes them: verified before they are kept, int8 on the job's own documents.

int8 is calibrated on one part of a sample of the input and verified on the other: through the job's heads, against transformers
in float32. What falls short of the asked similarity is not kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from operators.devices import choose
from operators.encoders import torch as reference
from operators.encoders._exported import Library, make_exact, open_export
from operators.encoding import Encode, Encoder
from operators.exports import Export, cache, make
from operators.models.layout import Layout
from operators.models.padded import rectangles, takes_token_types
from operators.packing import build_pack
from operators.schema import ID, N_SEGMENTS
from operators.segmentation import Ints
from pipeline.backends import check_backend, choose_precision, library_of
from pipeline.config import Config
from pipeline.errors import ConfigError, Held
from pipeline.ledger.pieces import Todo
from pipeline.models import check_model
from pipeline.planning import Plan, make_plan, table_head
from pipeline.preparing import Preparer, Reasons, count_column
from pipeline.recipe import ModelRecipe, Pass, make_heads
from pipeline.source.reading import read_span

_SPANS = 16
"""Of the input that the sample is taken from, at most."""

_WINDOWS_EACH = 4
"""Windows of a document that is verified, on average at most: long documents cost the reference much."""

_LEAST = 8
"""Documents that int8 is verified on at the least, where the input has as many; two for each of them are read."""

_BUDGET = 2048
"""Tokens that are encoded at once."""


@dataclass(frozen=True)
class Options:
    """Of `tidemill export`."""

    to: str | None = None
    """Directory of the exports; None for `runtime.exports`, or the cache where that is not set."""
    sample: int = 200
    """Windows that int8 is calibrated on, and documents that it is verified on."""
    min_similarity: float = 0.99
    """Mean over the documents that each task must reach in int8."""


@dataclass(frozen=True)
class _Sample:
    """Prepared documents of the job, and what reads them."""

    plan: Plan
    preparer: Preparer
    calibration: pa.Table
    verification: pa.Table

    def passes(self, model: ModelRecipe) -> list[Pass]:
        """The passes of a model."""
        return [share for share in self.plan.recipe.passes if share.model == model]


def export(config: Config, options: Options) -> dict[str, Any]:
    """Make the exports of all models of a job and report them; those in fp32 and bf16 that are there already stand.

    The precision is the one that a run of the job would have. ConfigError where the job has no exports to make, Held where one
    in int8 is too far from the reference."""
    check_backend(config)
    library = library_of(config)
    if library is None:
        raise ConfigError("backend torch needs no export; set it to onnx or openvino", field="runtime.backend")
    models = {name: check_model(config, name, task) for name, task in config.tasks.items()}
    base = table_head(config)[1] if config.runtime.precision == "auto" else None
    precision, _ = choose_precision(config, {name: model.layout for name, model in models.items()}, choose("cpu"), base)
    directory = options.to or config.runtime.exports
    root = Path(directory).expanduser().absolute() if directory else cache()
    if precision == "int8":
        made = _calibrated(config, library, root, options)
    else:
        layouts = {model.recipe: model.layout for model in models.values()}
        made = {recipe: _exact(library, layout, precision, root) for recipe, layout in layouts.items()}
    exports = [_shown(recipe, found) for recipe, found in made.items()]
    return {"backend": library.name, "precision": precision, "exports": exports}


def _shown(model: ModelRecipe, export: Export) -> dict[str, Any]:
    found = {key: export.manifest[key] for key in ("digest", "verification", "calibration") if key in export.manifest}
    return {"model": model.source, "revision": model.revision, "folder": str(export.folder), **found}


def _exact(library: Library, layout: Layout, precision: str, root: Path) -> Export:
    """An export that needs no calibration. ConfigError where the model cannot be exported."""
    try:
        return make_exact(library, layout, precision, root)
    except ValueError as error:
        raise ConfigError(str(error), field="runtime.backend") from error


def _calibrated(config: Config, library: Library, root: Path, options: Options) -> dict[ModelRecipe, Export]:
    made: dict[ModelRecipe, Export] = {}
    with tempfile.TemporaryDirectory() as folder:
        sample = _take(config, Path(folder), options.sample)
        for model in dict.fromkeys(task.model for task in sample.plan.recipe.tasks):
            layout = sample.preparer.layout(model)

            def build(target: Path, model: ModelRecipe = model, layout: Layout = layout) -> Mapping[str, Any]:
                exact = _exact(library, layout, "fp32", cache())
                windows = _windows(sample, model, layout, options.sample)
                library.quantize(exact.folder, target, windows)
                found = _verify(sample, model, open_export(library, layout, target, "int8"))
                _gate(model, found, options.min_similarity)
                ids = "\n".join(sample.calibration[ID].to_pylist())
                digest = hashlib.sha256(ids.encode()).hexdigest()
                return {"verification": found, "calibration": {"windows": len(windows), "ids_sha256": digest}}

            made[model] = make(library.identify(layout, "int8"), root, build, again=True)
    return made


def _gate(model: ModelRecipe, found: Mapping[str, Mapping[str, float]], wanted: float) -> None:
    """Held where a task falls short."""
    short = [
        f"task {task}: mean similarity {f['mean']:.6f}, min {f['min']:.6f}" for task, f in found.items() if f["mean"] < wanted
    ]
    if short:
        raise Held(
            f"the int8 export of {model.source} is too far from the reference: {'; '.join(short)} over "
            f"{next(iter(found.values()))['documents']} documents, and a mean of {wanted} is asked for. It is not kept; "
            "calibrate on more windows (--sample), accept less (--min-similarity), or use fp32 or bf16",
            "",
        )


def _take(config: Config, folder: Path, count: int) -> _Sample:
    """Documents of the first pieces of evenly spread spans, every other one for verification; `folder` is for an empty table.

    So that nothing is pinned and all of the input is there to be read, whatever the job's own table holds."""
    output = config.output.model_copy(update={"path": str(folder / "table"), "storage_options": None})
    runtime = config.runtime.model_copy(update={"precision": "fp32", "engine": "local"})
    plan = make_plan(config.model_copy(update={"output": output, "runtime": runtime}))
    preparer = Preparer(plan.recipe)
    spans = plan.source.spans
    chosen = [spans[i] for i in _evenly(len(spans), _SPANS)]
    share = -(-2 * max(count, _LEAST) // max(1, len(chosen)))
    tables = []
    for span in chosen:
        batch = next(iter(read_span(Todo(span, frozenset()), plan.recipe.read)), None)
        if batch is not None:
            tables.append(batch.documents.take(pa.array(_evenly(batch.documents.num_rows, share))))
    documents = pa.concat_tables(tables) if tables else None
    if documents is not None:
        documents = _without(documents, preparer.unfit(documents))
        documents = _without(*preparer.prepare(documents))
    if documents is None or documents.num_rows < 2:
        raise ConfigError("int8 is calibrated on documents and verified on others, and there are not two", field="input.path")
    order = np.arange(documents.num_rows)
    verification = documents.take(pa.array(order[1::2]))
    kept = _affordable(verification[count_column(0, N_SEGMENTS)].to_numpy(), _WINDOWS_EACH * count)
    return _Sample(plan, preparer, documents.take(pa.array(order[::2])), verification.take(pa.array(kept)))


def _affordable(windows: Ints, room: int) -> Ints:
    """Rows in order while their windows fit into `room`; where these are fewer than `_LEAST`, the shortest of the others too."""
    kept: list[int] = []
    for row, count in enumerate(windows.tolist()):
        if count <= room:  # one long document does not push out all that follow it
            kept.append(row)
            room -= count
    others = np.setdiff1d(np.arange(len(windows)), kept)
    shortest = others[np.argsort(windows[others], kind="stable")][: max(0, _LEAST - len(kept))]
    return np.sort(np.concatenate([np.array(kept, np.int64), shortest]))


def _windows(sample: _Sample, model: ModelRecipe, layout: Layout, count: int) -> list[Mapping[str, Ints]]:
    """About `count` windows to calibrate on, one at a time, since padding would be counted as text."""
    passes = sample.passes(model)
    made: list[Mapping[str, Ints]] = []
    for share in passes:
        inputs, frame = sample.preparer.inputs(sample.calibration, share.view), sample.preparer.frame(share.view)
        for segment in _evenly(len(inputs.segments.length), -(-count // len(passes))):
            pack = build_pack(inputs, np.array([segment]), frame)
            made.append(rectangles(pack, with_token_types=takes_token_types(layout.model_type)).inputs)
    return made


def _verify(sample: _Sample, model: ModelRecipe, encoder: Encoder) -> dict[str, dict[str, float]]:
    """By task: documents, and mean and least similarity of their values to the reference's; one that fails has none."""
    layout = sample.preparer.layout(model)
    exact = reference.load(layout, "cpu", "fp32", padded=True)
    found = {}
    for share in sample.passes(model):
        inputs, frame = sample.preparer.inputs(sample.verification, share.view), sample.preparer.frame(share.view)
        ours, theirs = (Encode(e, make_heads(share, layout), frame, _BUDGET) for e in (encoder, exact))
        mine, wanted = ours(inputs), theirs(inputs)
        good = np.setdiff1d(np.arange(inputs.n_documents), list(wanted.failed))
        both = np.setdiff1d(good, list(mine.failed))
        for task, head in theirs.heads.items():
            similarity = np.zeros(inputs.n_documents)
            rows = pa.array(both)
            similarity[both] = head.similarity(mine.values[task].take(rows), wanted.values[task].take(rows))
            if not len(good):
                raise ConfigError("the reference fails on every document that int8 was to be verified on", field=f"tasks.{task}")
            numbers = similarity[good]
            found[task] = {"documents": len(good), "mean": float(numbers.mean()), "min": float(numbers.min())}
    return found


def _evenly(total: int, count: int) -> Ints:
    """int64: up to `count` of 0 .. total - 1, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _without(documents: pa.Table, reasons: Reasons) -> pa.Table:
    kept = np.setdiff1d(np.arange(documents.num_rows), list(reasons))
    return documents.take(pa.array(kept))
