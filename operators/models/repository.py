"""Finding a model's files: inside an installed package, in a directory, behind an fsspec URL or on the hub; and their hashes.

`TIDEMILL_CACHE` (default ~/.cache/tidemill) keeps what was downloaded from URLs and the hashes of large files, by path, size
and modification time, so that a second run reads nothing big. Models from the hub lie in its own cache; HF_HUB_OFFLINE holds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from filelock import FileLock
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from operators.models.files import entry, read_json
from operators.models.layout import read_layout

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""All that a model is made of; never pickles or code."""

_NOT_VALUES = ("data_config.json", "generation_config.json", "trainer_state.json")
"""Files that change no vector."""

_WEIGHTS = re.compile(r"model[\w.-]*\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Repository:
    """A model's files on this machine. `revision` is the hub's commit, None for other sources."""

    path: Path
    source: str
    revision: str | None

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 over the weights, those of later modules included."""
        return _fingerprint(self.path, _weights(self.path))

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 over the tokenizer's files and all configs."""
        files = (f for folder in read_layout(self.path).directories for pattern in _FILES[1:] for f in folder.glob(pattern))
        return _fingerprint(self.path, (f for f in files if f.name not in _NOT_VALUES))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both: all of the model that changes values."""
        return _hash(self.weights_fingerprint, self.tokenizer_fingerprint)

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and modification time (ns) of every file of the model: what can be compared without reading them."""
        files = {f for folder in read_layout(self.path).directories for pattern in _FILES for f in folder.glob(pattern)}
        return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return sum(f.stat().st_size for f in _weights(self.path))


def resolve(model: str, revision: str | None = None) -> Repository:
    """The files of `model`: `package:NAME`, a directory, an fsspec URL of one, or a hub id with an optional revision.

    ValueError, saying what to do, where it is not found, incomplete, of an unknown kind, only pickled, or wants remote code."""
    if model.startswith("package:"):
        repository = Repository(_in_package(model.removeprefix("package:")), model, None)
    elif "://" in model:
        repository = Repository(_fetch(model), model, None)
    elif Path(model).expanduser().is_dir():
        repository = Repository(Path(model).expanduser().absolute(), model, None)
    else:
        path = _from_hub(model, revision)
        if not _COMMIT.fullmatch(path.name):
            raise ValueError(f"{model!r}: its revision leads to {path.name!r}, which is no commit of the hub; fetch it again")
        repository = Repository(path, model, path.name)
        revision = None
    if revision is not None:
        raise ValueError(f"revision {revision!r} is only for models on the hub; {model!r} is none, so leave it out")
    _check(repository)
    return repository


def _check(repository: Repository) -> None:
    """ValueError where the model wants remote code, carries no safetensors, or names files that are not among those hashed."""
    layout = read_layout(repository.path)
    for folder in layout.directories:
        for file in folder.glob("*config*.json"):
            _check_config(repository.source, file, read_json(file))
    for folder in layout.weights_dirs:
        index = read_json(folder / "model.safetensors.index.json", dict)
        parts = (entry(index, "weight_map", dict, folder / "model.safetensors.index.json") or {}).values() if index else ()
        for part in parts:
            if not _WEIGHTS.fullmatch(str(part)):
                raise ValueError(
                    f"{repository.source}: its index of weights names {part!r}; only model*.safetensors beside it is read"
                )
        for file in folder.glob("model*.safetensors"):
            try:
                with safe_open(file, framework="np"):  # reads the header alone
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{repository.source}: {file.name} is no whole safetensors file; fetch it again") from error
        if not any(folder.glob("model*.safetensors")):
            raise ValueError(
                f"{repository.source}: no model.safetensors in {folder}; pickled weights (.bin, .pt) are refused, since loading "
                "one can run code: convert them, or choose a revision that has safetensors"
            )


def _check_config(source: str, file: Path, config: object) -> None:
    """ValueError where a config, or one nested in it, asks for what transformers would run or read from elsewhere."""
    if isinstance(config, list):
        for item in config:
            _check_config(source, file, item)
    if not isinstance(config, dict):
        return
    # Attention may be a repository of kernels, which are code too.
    kernels = any("/" in str(config.get(key) or "") for key in ("attn_implementation", "_attn_implementation"))
    if config.get("auto_map") or config.get("trust_remote_code") or kernels:
        raise ValueError(f"{source}: {file.name} asks for code of its own, which is never run; choose another model")
    if config.get("transformers_weights") or file.name == "adapter_config.json":
        raise ValueError(f"{source}: {file.name} takes weights from files of its own choice; merge them into model.safetensors")
    for value in config.values():
        _check_config(source, file, value)


def _in_package(name: str) -> Path:
    """The model's directory inside an installed package, which is found but not imported."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {name!r} is not installed here; install it where the job runs, on workers too")
    root = Path(next(iter(spec.submodule_search_locations)))
    for marker in ("modules.json", "config.json"):
        found = sorted(root.rglob(marker), key=lambda p: (len(p.parts), p))
        if found:
            return found[0].parent
    raise ValueError(f"package {name!r} holds no model: there is no modules.json or config.json in it")


def _from_hub(model: str, revision: str | None) -> Path:
    if not _HUB_ID.fullmatch(model):
        raise ValueError(f"there is no directory {model!r}")
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=list(_FILES), ignore_patterns=["onnx/*", "openvino/*"])
        )
    except (OSError, ValueError) as error:  # the hub's own errors derive from these
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"{model!r} is no directory here, and the hub gave no such model{at} ({type(error).__name__}); check the name, "
            "HF_HUB_OFFLINE and HF_TOKEN"
        ) from error


def _fetch(url: str) -> Path:
    """A local copy of the directory at `url`, kept in the cache under a name made of its files' versions.

    One process of a node downloads; the others wait and find what it fetched."""
    fs, root = fsspec.url_to_fs(url)
    if isinstance(fs, fsspec.get_filesystem_class("file")):
        if not Path(root).is_dir():
            raise ValueError(f"there is no directory {url!r}")
        return Path(root)
    try:
        listed = fs.find(root, detail=True)
    except Exception as error:  # every store's library has errors of its own
        raise ValueError(
            f"cannot list {url!r} ({type(error).__name__}); check the address, and the credentials in the environment"
        ) from error
    files = {
        name[len(root) :].lstrip("/"): info for name, info in listed.items() if any(PurePosixPath(name).match(p) for p in _FILES)
    }
    if not files or any(".." in PurePosixPath(name).parts for name in files):
        raise ValueError(f"no model files lie under {url!r}")
    versions = sorted(
        (name, str(info.get("etag") or info.get("ETag") or info.get("mtime")), info["size"]) for name, info in files.items()
    )
    target = _cache() / "models" / _hash(url, versions)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                _download(fs, root, list(files), target)
    return target


def _download(fs: Any, root: str, names: list[str], target: Path) -> None:
    """Copy the files to `target`, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / "model"
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root.rstrip('/')}/{name}", str(partial / name))
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # locks do not hold on every file system: another process was first, and its copy stands
                raise


def _weights(path: Path) -> list[Path]:
    return [f for folder in read_layout(path).weights_dirs for f in sorted(folder.glob("model*.safetensors"))]


def _fingerprint(root: Path, files: Iterable[Path]) -> str:
    return _hash([(f.relative_to(root).as_posix(), _file_hash(f)) for f in sorted(set(files))])


def _file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes, remembered by path, size and modification time."""
    state = file.stat()
    note = _cache() / "hashes" / _hash(str(file.resolve()), state.st_size, state.st_mtime_ns)
    try:
        return note.read_text()
    except OSError:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    partial = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(digest)
        partial.replace(note)
    except OSError:
        return digest  # a cache that cannot be written only costs time
    return digest


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _cache() -> Path:
    return Path(os.environ.get("TIDEMILL_CACHE") or "~/.cache/tidemill").expanduser()
