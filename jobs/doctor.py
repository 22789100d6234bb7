"""`tidemill doctor`: whether this machine (and, with a config, its storage and model) is fit to run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import psutil
import typer
from rich.table import Table

from jobs.console import Json, Overrides, cell, human, out, print_json
from pipeline.clusters import refuse_open_cluster, refuse_unpickling
from pipeline.config import Config, load
from pipeline.errors import TidemillError

_NEEDED = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "fsspec")
_OPTIONAL = ("s3fs", "gcsfs", "adlfs", "openvino", "onnxruntime", "nncf", "torch-npu")
_MEMORY_WANTED = 2 << 30


@dataclass(frozen=True)
class Check:
    """One finding. `ok` None: worth knowing, neither good nor bad."""

    name: str
    ok: bool | None
    detail: str


def command(
    config: Annotated[
        str | None, typer.Argument(help="A job whose storage and model are checked too.", metavar="[CONFIG]")
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> int:
    """Check versions, devices, free CPUs and memory; with a job also its storage's create-only writes and its model."""
    checks = [_python(), *_versions(), _cpus(), _memory(), *_devices(), _ray()]
    if config:
        settings = load(config, overrides)
        checks += [_guarded("storage", lambda: _storage(settings)), _guarded("plan", lambda: _plan(settings))]
    failed = [c for c in checks if c.ok is False]
    if json:
        print_json({"ok": not failed, "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]})
    else:
        table = Table(show_header=False, box=None)
        for check in checks:
            mark = {True: "[green]ok", False: "[red]FAIL", None: "[dim]-"}[check.ok]
            table.add_row(mark, f"[bold]{check.name}", cell(check.detail))
        out.print(table)
    return 1 if failed else 0


def _python() -> Check:
    return Check(
        "python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.machine()} (3.11 or newer is needed)"
    )


def _versions() -> list[Check]:
    checks = []
    for name in (*_NEEDED, *_OPTIONAL):
        try:
            checks.append(Check(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, None if name in _OPTIONAL else False, "not installed"))
    return checks


def _cpus() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load_now = os.getloadavg()[0]
    free = max(0.0, usable - load_now)
    return Check(
        "cpus",
        True if free >= 1 else None,
        f"{usable} usable, load {load_now:.1f}: about {free:.1f} free (one is kept free of encoders)",
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available
    return Check("memory", free >= _MEMORY_WANTED, f"{human(free)} available; a CPU worker wants about 1 GiB beside its weights")


def _devices() -> list[Check]:
    from operators.devices import choose

    device = choose("auto")
    return [Check("device", True, f"{device.kind} x {device.count}: {device.reason}")]


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("cluster", None, "RAY_ADDRESS is not set: a run starts a local Ray")
    try:
        refuse_unpickling()
        refuse_open_cluster(address, "RAY_ADDRESS")
    except TidemillError as error:
        return Check("cluster", False, str(error))
    mode = "with" if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else "without"
    return Check("cluster", None, f"{address}, {mode} token authentication")


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TidemillError as error:
        return Check(name, False, str(error))
    except Exception as error:  # noqa: BLE001 -- each store's library raises its own, and the other checks are still wanted
        return Check(name, False, type(error).__name__)


def _storage(settings: Config) -> Check:
    from pipeline.ledger.probe import check_create_only
    from pipeline.ledger.store import open_store

    problem = check_create_only(open_store(settings.output.path, settings.output_options, settings.output.single_writer))
    return Check("storage", problem is None, problem or "create-only writes hold: of eight racing writers one won")


def _plan(settings: Config) -> Check:
    from pipeline.notes import describe
    from pipeline.planning import make_plan

    return Check("plan", True, "; ".join(describe(make_plan(settings))))
