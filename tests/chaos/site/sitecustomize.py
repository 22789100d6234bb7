"""Every Python process with this folder on PYTHONPATH does what CHAOS_HOOK says when its workers encode; for tests alone.

    kill:0.04      before or after encoding, the worker ends itself by SIGKILL with this probability
    hang:TEXT      pieces of a shard whose key holds TEXT are never done: Python sleeps
    block:TEXT     the same in a call into native code, which signals do not end
    slow:SECONDS   every piece takes so much longer
    grace:SECONDS  what SIGTERM leaves to writes in flight, in place of the usual

Several are separated by commas. CHAOS_LOG is a folder: one file for each kill, and one for each piece that is written although
it has a record.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType

_HOOKS = dict(part.split(":") for part in os.environ.get("CHAOS_HOOK", "").split(",") if part)
_IN_RAY = any("default_worker.py" in word for word in sys.orig_argv)


def _note(what: str) -> None:
    import time

    with open(f"{os.environ['CHAOS_LOG']}/{what}-{os.getpid()}-{time.time_ns()}", "xb"):
        pass


def _maybe_die() -> None:
    import random
    import signal

    if _IN_RAY and random.SystemRandom().random() < float(_HOOKS["kill"]) / 2:
        _note("kill")
        os.kill(os.getpid(), signal.SIGKILL)


def _block() -> None:
    import ctypes

    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _patch_passes(module: ModuleType) -> None:
    import time

    inner = module.Passes.__call__

    def call(self, documents, **options):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        if "kill" in _HOOKS:
            _maybe_die()
        key = documents["id"][0].as_py() if documents.num_rows else ""
        if key.startswith((_HOOKS.get("hang", "\0"), _HOOKS.get("block", "\0"))):
            _note("hangs")
        if key.startswith(_HOOKS.get("hang", "\0")):
            time.sleep(10_000)
        if key.startswith(_HOOKS.get("block", "\0")):
            _block()
        time.sleep(float(_HOOKS.get("slow", 0)))
        results = inner(self, documents, **options)
        if "kill" in _HOOKS:
            _maybe_die()
        return results

    module.Passes.__call__ = call


def _patch_sink(module: ModuleType) -> None:
    inner = module.write

    def write(store, generation, batch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        from pipeline.ledger.records import read_record

        if "CHAOS_LOG" in os.environ and read_record(store, generation, batch.id):
            _note("again")
        return inner(store, generation, batch)

    module.write = write


def _patch_grace(module: ModuleType) -> None:
    module.GRACE_SECONDS = float(_HOOKS.get("grace", module.GRACE_SECONDS))


_PATCHES = {"pipeline.passes": _patch_passes, "pipeline.sink": _patch_sink, "pipeline.engines": _patch_grace}


class _Finder(importlib.abc.MetaPathFinder):
    """Patches modules right after they were imported."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if name not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _PATCHES[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _HOOKS:
    sys.meta_path.insert(0, _Finder())
