"""The house is in order: versions agree, configs and documents are true, packages are complete."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

import tidemill
from jobs.__main__ import app
from pipeline.config import Config, from_dict, load
from pipeline.kinds import head_config
from pipeline.sections import Task

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOPS = ("jobs", "operators", "pipeline")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "demo/README.md"])
SOURCES = sorted(path for top in (*TOPS, "demo", "benchmarks") for path in (ROOT / top).rglob("*.py"))


def name(path: Path) -> str:
    """The path within the repository, for test ids."""
    return str(path.relative_to(ROOT))


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Document and text of each code block in `language`."""
    for document in DOCUMENTS:
        for text in re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
            yield name(document), text


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version == tidemill.__version__


def test_the_wheel_has_every_package() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for top in TOPS for path in (ROOT / top).rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
    assert all((ROOT / top / "py.typed").is_file() for top in TOPS)
    assert set(PROJECT["tool"]["setuptools"]["package-data"]) == set(TOPS)


def test_every_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(key): version for key, version in pins.items()}
    extras = PROJECT["project"]["optional-dependencies"]
    installed = [line for extra in ("s3", "gcs", "azure", "delta", "lance", "demo", "dev") for line in extras[extra]]
    for line in [*PROJECT["project"]["dependencies"], *installed]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_configs_load(path: Path) -> None:
    load(path)


def keys(model: type[BaseModel]) -> set[str]:
    """The names of a model's fields."""
    return set(model.model_fields)


def test_embed_yaml_has_every_key_with_its_default() -> None:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "configs/embed.yaml").read_text())
    assert set(raw) == keys(Config)
    for section in ("input", "segments", "output", "runtime"):
        assert set(raw[section]) == keys(Config.model_fields[section].annotation or BaseModel), section
    task = raw["tasks"]["vector"]
    assert set(task) == (keys(Task) - {"settings", "segments"}) | keys(head_config("embedding"))
    given = {
        "input": {"path": raw["input"]["path"]},
        "tasks": {"vector": {key: task[key] for key in ("head", "model", "prompt")}},
        "output": {"path": raw["output"]["path"]},
    }
    assert from_dict(raw) == from_dict(given)


def test_whole_jobs_in_the_documents_load() -> None:
    jobs = [(document, yaml.safe_load(text)) for document, text in blocks("yaml")]
    whole = [raw for _, raw in jobs if {"input", "tasks", "output"} <= set(raw)]
    assert len(whole) >= 2
    for raw in whole:
        from_dict(raw)


def test_commands_in_the_documents_exist() -> None:
    known = {command.name for command in app.registered_commands}
    shown = {found for _, text in blocks("sh") for found in re.findall(r"^\s*tidemill (\w+)", text, re.MULTILINE)}
    assert shown == known
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {found for _, text in blocks("sh") for found in re.findall(r"\bmake (\w+)", text)} <= targets


def test_python_in_the_documents_compiles() -> None:
    examples = list(blocks("python"))
    assert examples
    for document, text in examples:
        compile(text, document, "exec")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS, *CONFIGS], ids=name)
def test_no_leftovers_and_no_private_paths(path: Path) -> None:
    found = re.findall(r"\b(?:TODO|FIXME|XXX)\b|(?<![\w.])/(?:work|root|home)/\S*", path.read_text())
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_are_ascii_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text()
    assert text.isascii()
    assert text.count("\n") <= 300
    assert text.startswith('"""') or not text
