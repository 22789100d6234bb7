"""Exports: models as graphs of other libraries, each a folder that appears whole or not at all.

An export lies in a directory that the job names, or in `$TIDEMILL_CACHE/exports` (default ~/.cache/tidemill). Its name has a hash
of all that it was made of, so that one of other weights, another backend or other versions is never taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from operators.models.files import read_json
from operators.models.layout import Layout
from operators.models.repository import Repository

MANIFEST = "tidemill_export.json"

_FORMAT = 1
"""Raised whenever exports are made in another way, so that older ones are not found."""

_UNFINISHED = ".tmp"
"""How folders begin that exports are made in."""

_STALE = 24 * 3600
"""Seconds after which such a folder is what a killed process left."""


@dataclass(frozen=True)
class Identity:
    """What an export is made of."""

    model_type: str
    backend: str
    precision: str
    fingerprint: str
    """SHA-256 over the weights and config.json."""
    versions: Mapping[str, str]
    """Of the libraries that made it."""

    @property
    def name(self) -> str:
        """Of the folder."""
        digest = hashlib.sha256(json.dumps([_FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()
        return f"{self.model_type}-{self.backend}-{self.precision}-{digest[:16]}"


@dataclass(frozen=True)
class Export:
    """An export on this machine."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over the files of the graph."""
        return str(self.manifest["digest"])

    def check(self) -> None:
        """Read the graph. ValueError where its files are not those that were made."""
        if _digest(self.folder) != self.digest:
            raise ValueError(f"{self.folder} is damaged: its files are not what {MANIFEST} says; copy it whole, or make it again")


@dataclass(frozen=True)
class Exports:
    """Where a job looks for exports before the cache, and which ones it was planned with."""

    directory: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    """By `Identity.name`, of exports whose values depend on what they were calibrated with."""


def identify(layout: Layout, backend: str, precision: str, packages: tuple[str, ...]) -> Identity:
    """What an export of `layout` would be made of here. Reads the weights once to hash them (`Repository`)."""
    weights = Repository(layout.directories[0], str(layout.directories[0]), None).weights_fingerprint
    config = (layout.transformer_dir / "config.json").read_bytes()
    fingerprint = hashlib.sha256(weights.encode() + config).hexdigest()
    # Without what stands behind "+": the same torch for CPUs and for CUDA.
    versions = {package: version(package).partition("+")[0] for package in (*packages, "torch", "transformers")}
    return Identity(layout.model_type, backend, precision, fingerprint, versions)


def cache() -> Path:
    """Where exports lie that no job names a directory for."""
    return Path(os.environ.get("TIDEMILL_CACHE") or "~/.cache/tidemill").expanduser() / "exports"


def find(identity: Identity, directory: str | None) -> Export | None:
    """The export in `directory` or the cache; None where neither has it."""
    for root in (*([Path(directory)] if directory else []), cache()):
        manifest = read_json(root / identity.name / MANIFEST, dict)
        if manifest is not None:
            return Export(root / identity.name, manifest)
    return None


def make(identity: Identity, root: Path, build: Callable[[Path], Mapping[str, Any]], *, again: bool = False) -> Export:
    """Let `build` write the graph to a folder and take what it returns into the manifest; what it raises leaves nothing behind.

    One process builds at a time, and those that waited take what it made. `again`: replace an export that is there."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    target = root / identity.name
    lock = FileLock(root / f".{identity.name}.lock")
    with lock, tempfile.TemporaryDirectory(dir=root, prefix=_UNFINISHED) as folder:
        made, manifest = Path(folder) / "export", read_json(target / MANIFEST, dict)
        if manifest is not None and not again:
            return Export(target, manifest)
        made.mkdir(mode=0o755)
        found = build(made)
        manifest = {"format": _FORMAT, **asdict(identity), "digest": _digest(made), **found}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if target.exists():
            target.rename(Path(folder) / "replaced")
        try:
            made.rename(target)
        except OSError:  # locks do not hold on every file system: another process was first, and its export stands
            manifest = read_json(target / MANIFEST, dict)
            if manifest is None:
                raise
        return Export(target, manifest)


def _sweep(root: Path) -> None:
    """Remove what processes left that were killed while they made an export."""
    for folder in root.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):  # another process removes it too
            if time.time() - folder.stat().st_mtime > _STALE:
                shutil.rmtree(folder, ignore_errors=True)


def _digest(folder: Path) -> str:
    """Of the graph: all files but the manifest."""
    hashes = []
    for file in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        with file.open("rb") as stream:
            hashes.append((file.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
