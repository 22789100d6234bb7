"""Which shards the input has: files, directories and globs on any allowed store, each shard with its key and version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipeline.errors import ConfigError, Incomplete, TidemillError
from pipeline.ledger.pieces import Shard
from pipeline.remote import bounded, is_transient, retried
from pipeline.sections import Input
from pipeline.source.storage import EXTRAS, filesystem, version_of
from pipeline.urls import protocol

Format = Literal["parquet", "jsonl"]
Compression = Literal["gz", "zst"] | None
_Found = Literal["named", "matched", "inside"]

_FORMATS: dict[str, Format] = {"parquet": "parquet", "pq": "parquet", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl"}
_COMPRESSIONS: dict[str, Compression] = {"gz": "gz", "zst": "zst"}
_SUFFIX = re.compile(r"\.(?:(parquet|pq)|(jsonl|ndjson|json)(?:\.(?:gz|zst))?)$", re.IGNORECASE)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Listing:
    """What the input's paths lead to."""

    shards: tuple[Shard, ...]
    """Sorted by key."""
    ignored: int
    """Files left out: names that start with `_` or `.` (or lie in such a folder), unknown suffixes, and links."""


@dataclass(frozen=True)
class _Root:
    """One entry of `input.path`."""

    fs: AbstractFileSystem
    path: str
    base: str
    """Keys are relative to it: the directory, the file's folder, or what precedes the first wildcard."""
    base_url: str
    glob: re.Pattern[str] | None


def list_shards(settings: Input, output_path: str) -> Listing:
    """All shards of `settings.path`. Each call lists the store anew; nothing is cached.

    ConfigError where one of the paths leads to no shard or its store cannot be listed (input.path), or the output lies inside
    (output.path)."""
    roots = [_root(url, settings.storage_options) for url in settings.paths]
    for root, url in zip(roots, settings.paths, strict=True):
        _refuse_output_inside(root, url, output_path)
    shards: dict[str, Shard] = {}
    ignored: set[str] = set()
    for root, url in zip(roots, settings.paths, strict=True):
        n_shards = n_ignored = 0
        for path, info, found in _files(root, url):
            name = path[len(root.base) :].lstrip("/")
            address = root.base_url + path[len(root.base) :]
            # A link in a folder may lead anywhere, and whoever can write the input must not choose what else is read.
            if info["type"] != "file" or not _wanted(name, settings.format, found):
                ignored.add(address)
                n_ignored += 1
                continue
            n_shards += 1
            if address not in shards:
                key = name if len(roots) == 1 else address
                shards[address] = Shard(key, address, version_of(root.fs, path, info), int(info["size"]))
        if not n_shards:
            raise _no_match(url, settings.format, n_ignored)
    return Listing(tuple(sorted(shards.values())), len(ignored - set(shards)))


def _no_match(url: str, forced: str, ignored: int) -> ConfigError:
    kind = "Parquet or JSONL" if forced == "auto" else forced
    left_out = f"; {ignored} files were left out (hidden, starting with '_', links, or with another suffix)" if ignored else ""
    return ConfigError(
        f"no {kind} file matches {url}{left_out}; looked for *.parquet, *.pq, *.jsonl, *.ndjson "
        "and *.json, the last three also as .gz and .zst",
        field="input.path",
    )


def format_of(url: str, forced: Literal["auto", "parquet", "jsonl"] = "auto") -> Format | None:
    """What `url` is read as: `forced`, or what its suffix says; None for an unknown suffix."""
    if forced != "auto":
        return forced
    match = _SUFFIX.search(url)
    return _FORMATS[(match[1] or match[2]).lower()] if match else None


def compression_of(url: str) -> Compression:
    """By which suffix a JSONL file is compressed."""
    suffix = url.rsplit(".", 1)[-1].lower()
    return _COMPRESSIONS.get(suffix)


def partitions(shard: Shard) -> dict[str, str | None]:
    """Hive partition columns, from the folders `name=value` in the shard's path."""
    pairs = (folder.partition("=") for folder in shard.url.split("/")[:-1] if "=" in folder)
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, _, value in pairs}


def _root(url: str, options: Mapping[str, Any]) -> _Root:
    try:
        fs, path = filesystem(url, options)
        wild = re.search(r"[*?\[]", path)
        kind = _kind(fs, path)
        glob = re.compile(glob_translate(path)) if wild and kind is None else None
        whole = kind == "directory"
    except ConfigError:
        raise
    except Exception as error:  # each store's library raises its own
        raise _unlistable(url, error) from error
    base = path if whole else path[: wild.start() if wild and glob else None].rpartition("/")[0]
    if protocol(url) == "file":
        return _Root(fs, path, base, base, glob)
    # The URL may name an account that the stripped path lacks, so the base's URL is cut from the URL itself.
    tail = path[len(base) :]
    return _Root(fs, path, base, url.rstrip("/").removesuffix(tail), glob)


def _files(root: _Root, url: str) -> Iterator[tuple[str, Mapping[str, Any], _Found]]:
    """Path and info of each file or link, and how it was found: named by the config, matched by its wildcards, or inside a
    directory."""
    try:
        found = _matches(root) if root.glob else {root.path: _info(root.fs, root.path)}
        for path, info in sorted(found.items()):
            if info["type"] == "directory":
                yield from ((p, i, "inside") for p, i in _find(root.fs, path).items())
            else:
                yield path, info, "matched" if root.glob else "named"
    except FileNotFoundError:
        return
    except Exception as error:  # as above
        raise _unlistable(url, error) from error


def _matches(root: _Root) -> dict[str, Mapping[str, Any]]:
    """Files and folders that the wildcards match; no folder that they cannot match is listed.

    Not by `fs.glob`, which leaves out without a word what it could not list. `**` matches files alone."""
    assert root.glob is not None
    if "**" in root.path:
        return {path: info for path, info in _find(root.fs, root.base).items() if root.glob.match(path)}
    levels = [m.start() for m in re.finditer("/", root.path) if m.start() > len(root.base)] + [len(root.path)]
    folders, found = [root.base], {}
    for end in levels:
        pattern = re.compile(glob_translate(root.path[:end]))
        found = {path: info for folder in folders for path, info in _ls(root.fs, folder).items() if pattern.match(path)}
        folders = [path for path, info in found.items() if info["type"] == "directory"]
    return found


def _ls(fs: AbstractFileSystem, folder: str) -> dict[str, Mapping[str, Any]]:
    """What stands in a folder, nothing where it is gone."""
    try:
        listed = retried(lambda: fs.ls(folder, detail=True, **bounded(fs)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {path: info for info in listed if (path := info["name"].rstrip("/")) != folder}


def _find(fs: AbstractFileSystem, folder: str) -> dict[str, Mapping[str, Any]]:
    """All files and links below a folder."""
    found = retried(lambda: fs.find(folder, detail=True))
    return {path: info for path, info in found.items() if info["type"] != "directory"}


def _info(fs: AbstractFileSystem, path: str) -> Mapping[str, Any]:
    info: Mapping[str, Any] = retried(lambda: fs.info(path, **bounded(fs)))
    return info


def _kind(fs: AbstractFileSystem, path: str) -> str | None:
    """`file`, `directory` or None for nothing. Not by `fs.isdir`, which says no where it could not find out."""
    try:
        return str(_info(fs, path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def _wanted(name: str, forced: str, found: _Found) -> bool:
    """Whether a file is a shard. One that the config names or matches may have any suffix where the format is forced."""
    if found != "named" and any(part.startswith(("_", ".")) for part in name.split("/")):
        return False
    by_suffix = format_of(name)
    if forced == "auto":
        return by_suffix is not None
    return by_suffix == forced or (by_suffix is None and found != "inside")


def _refuse_output_inside(root: _Root, url: str, output_path: str) -> None:
    """The output must not be input: neither the file, nor below the directory, nor among what the wildcards match."""
    if EXTRAS.get(protocol(output_path)) != EXTRAS.get(protocol(url)):
        return
    output = root.fs._strip_protocol(output_path)
    source = root.path
    if protocol(url) == "file":
        output, source = os.path.realpath(output), source if root.glob else os.path.realpath(source)
    probe = f"{output}/data/generation/piece.parquet"
    above = [probe[: m.start()] for m in re.finditer("/", probe)] + [probe]
    if any(root.glob.match(path) if root.glob else path == source for path in above):
        raise ConfigError(f"{output_path} lies inside the input {url}; give the output a place of its own", field="output.path")


def _unlistable(url: str, error: Exception) -> TidemillError:
    if is_transient(error) and isinstance(error, OSError):  # there is a store, and it answered with a fault
        return Incomplete(f"the store of {url} failed: {type(error).__name__}; run the same command again")
    return ConfigError(
        f"cannot list {url}: {type(error).__name__}; check the path, the credentials and storage_options", field="input.path"
    )
