"""What planning asks of `runtime.backend`: whether it runs here, in which precision, and from which exports."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping

import operators.encoders
from operators.devices import Device
from operators.encoders._exported import Library, missing_int8
from operators.exports import Exports, find
from operators.models.layout import Layout
from operators.precision import resolve_precision
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.kinds import modules
from pipeline.ledger.publish import Commit

_PRECISIONS = ("bf16", "fp16", "fp32")
"""Of backend torch, the widest last."""


def library_of(config: Config) -> Library | None:
    """The library that computes the job's exports; None for backend torch, which needs none."""
    return _library(config.runtime.backend)


def check_backend(config: Config) -> None:
    """ConfigError where the backend is not installed, or cannot do what `runtime` asks of it. Imports no library."""
    runtime, library = config.runtime, library_of(config)
    if library is None:
        if runtime.exports is not None:
            raise ConfigError("backend torch reads none; leave it out, or choose another backend", field="runtime.exports")
        return
    missing = [name for name in (*library.packages, *library.tools) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{library.name} needs {', '.join(missing)}: pip install 'tidemill[{library.name}]', on workers too",
            field="runtime.backend",
        )
    if runtime.device not in ("auto", "cpu"):
        raise ConfigError(
            f"backend {library.name} computes on CPUs alone, got {runtime.device!r}; choose auto or cpu", field="runtime.device"
        )
    if runtime.exports is not None and "://" in runtime.exports:
        raise ConfigError("name a local directory that every worker sees", field="runtime.exports")


def device_of(config: Config) -> str:
    """The device to ask for: `runtime.device`, but the CPU where the backend has no other."""
    return config.runtime.device if library_of(config) is None else "cpu"


def choose_precision(config: Config, layouts: Mapping[str, Layout], device: Device, base: Commit | None) -> tuple[str, str]:
    """The precision of the job and the reason. ConfigError where the backend does not have the one that is asked for."""
    asked: str = config.runtime.precision
    library, by_table, lacking = library_of(config), None, ""
    pinned = base.pins.get("precision") if base and asked == "auto" else None
    if base and pinned in (library.precisions if library else _PRECISIONS):
        asked, by_table = str(pinned), f"pinned by version {base.version} of the table"
    elif base and pinned:  # made by another backend, so it is another generation in any case
        lacking = f"; version {base.version} of the table is in {pinned}, which backend {config.runtime.backend} does not have"
    if library is None:
        try:
            similarity = None if config.runtime.precision_similarity == "auto" else config.runtime.precision_similarity
            families = {layout.model_type for layout in layouts.values()}
            resolved = [resolve_precision(asked, device.kind, family, similarity) for family in sorted(families)]
        except ValueError as error:
            raise ConfigError(str(error), field="runtime.precision") from error
        # One precision for the job: where families differ, the widest that all of them stand.
        name, why = max(resolved, key=lambda r: _PRECISIONS.index(r[0]))
    elif asked == "auto":
        name, why = "fp32", f"exact, and the default of backend {library.name}"
    elif asked in library.precisions:
        name, why = asked, "asked for"
    else:
        has = [f"{n} has {', '.join(other.precisions)}" for n in modules(operators.encoders) if (other := _library(n))]
        raise ConfigError(f"backend {library.name} has no {asked}; {'; '.join(has)}", field="runtime.precision")
    return name, by_table or f"{why}{lacking}"


def find_exports(config: Config, layouts: Mapping[str, Layout], precision: str) -> Exports | None:
    """Where workers look for exports, None for backend torch. ConfigError where one in int8 is not there."""
    library, directory = library_of(config), config.runtime.exports
    if library is None:
        return None
    digests = {}
    for task, layout in layouts.items() if precision == "int8" else ():
        identity = library.identify(layout, precision)
        export = find(identity, directory)
        if export is None:
            raise ConfigError(f"task {task}: {missing_int8(identity, directory)}", field="runtime.precision")
        digests[identity.name] = export.digest
    return Exports(directory, digests)


def _library(backend: str) -> Library | None:
    library: Library | None = getattr(importlib.import_module(f"operators.encoders.{backend}"), "LIBRARY", None)
    return library
