"""What is installed is what was tested: lines "supply chain" and "code" of the threat model."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.jobs.conftest import ROOT

LOCK = ROOT / "requirements.lock"
BIN = Path(sys.executable).parent
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked() -> dict[str, str]:
    """The lock's versions by name."""
    return {canonicalize_name(m["name"]): m["version"] for m in PIN.finditer(LOCK.read_text())}


def constrained() -> dict[str, str]:
    """Those of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


def blocks() -> dict[str, str]:
    """Each requirement of the lock with its hashes, by name."""
    starts = list(PIN.finditer(LOCK.read_text()))
    stops = [m.start() for m in starts[1:]] + [len(LOCK.read_text())]
    return {canonicalize_name(m["name"]): LOCK.read_text()[m.start() : stop] for m, stop in zip(starts, stops, strict=True)}


def docker_requirements() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docker_requirements", ROOT / "docker" / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needed(lines: list[str]) -> set[str]:
    """The packages that these requirements come to here, by the metadata of what is installed; without torch."""
    found: set[str] = set()
    todo = [(Requirement(line), "") for line in lines]
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (str(requirement), extra) in seen or name == "torch":
            continue
        seen.add((str(requirement), extra))
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        found.add(name)
        try:
            below = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError:
            continue
        todo += [(inner, wanted) for inner in below for wanted in ("", *requirement.extras)]
    return found


def test_the_lock_has_what_a_job_needs_at_the_tested_versions() -> None:
    pins, tested = locked(), constrained()
    assert len(pins) > 80
    assert needed(docker_requirements().requirements()) <= set(pins)
    assert {name: (version, tested[name]) for name, version in pins.items() if name in tested and tested[name] != version} == {}
    assert set(pins) <= set(tested)


def test_each_package_has_hashes_and_nothing_says_where_from() -> None:
    for name, block in blocks().items():
        assert HASH.search(block), name
    text = LOCK.read_text()
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted-host|@ |-e |git\+", text)
    lines = {line for line in text.splitlines() if line and not line.startswith("#")}
    assert all(PIN.match(line) or HASH.search(line) for line in lines)


def test_builds_of_one_machine_are_not_in_it() -> None:
    assert not [name for name in locked() if name == "torch" or name.startswith(("nvidia-", "triton", "torch-", "cuda-"))]
    assert not [version for version in locked().values() if "+" in version]


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The pip of the Python that this environment was made of, as in the Makefile."""
    command = [sys._base_executable, "-m", "pip", "--python", sys.executable, *arguments]  # type: ignore[attr-defined]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


SMALL = ("filelock", "annotated-types", "mdurl")


def test_pip_takes_what_fits_the_hashes_and_nothing_else(tmp_path: Path) -> None:
    """Real files of a real index; where there is none, nothing can be said."""
    part = tmp_path / "part.txt"
    part.write_text("".join(blocks()[name] for name in SMALL))
    install = ["install", "--require-hashes", "--no-deps", "--ignore-installed", "--dry-run", "--quiet", "--retries", "0", "-r"]
    done = pip(*install, str(part))
    if done.returncode and re.search("No matching distribution|Connection|Retrying|No module named pip|timed out", done.stderr):
        pytest.skip("no package index is reachable")
    assert done.returncode == 0, done.stderr
    part.write_text(HASH.sub("--hash=sha256:" + "0" * 64, blocks()[SMALL[0]]))
    wrong = pip(*install, str(part))
    assert wrong.returncode != 0
    assert "DO NOT MATCH THE HASHES" in wrong.stderr
    part.write_text("filelock\n")
    bare = pip(*install, str(part))
    assert bare.returncode != 0
    assert "--require-hashes" in bare.stderr


def test_the_bill_of_materials_has_every_package(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    command = [BIN / "cyclonedx-py", "requirements", "--output-format", "JSON", "--output-file", file, "--validate", LOCK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(file.read_text())
    assert made["bomFormat"] == "CycloneDX"
    assert {canonicalize_name(c["name"]): c["version"] for c in made["components"]} == locked()
    assert all(c["purl"].startswith("pkg:pypi/") for c in made["components"])
    makefile = (ROOT / "Makefile").read_text()
    assert "cyclonedx-py requirements --output-format JSON --output-file build/sbom.json requirements.lock" in makefile


@pytest.mark.parametrize("kind", ["cpu", "cuda", "cann"])
def test_images_install_by_hash(kind: str) -> None:
    text = (ROOT / "docker" / f"Dockerfile.{kind}").read_text().replace("\\\n", " ")
    (run,) = re.findall(r"^RUN .*pip install.*$", text, re.MULTILINE)
    first, second, third = (re.sub(r"\s+", " ", step) for step in run.split("&&"))
    assert "--require-hashes --requirement requirements.lock" in first
    assert re.search(r"--constraint constraints\.txt torch\b", second)
    assert third.rstrip().endswith("--no-deps --no-build-isolation .")
    assert "requirements.lock" in re.findall(r"^COPY pyproject.*$", text, re.MULTILINE)[0]


def test_bandit_is_asked_and_finds_what_is_wrong(tmp_path: Path) -> None:
    assert (
        "$(BIN)/bandit --quiet --configfile pyproject.toml --recursive jobs pipeline operators" in (ROOT / "Makefile").read_text()
    )
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle, subprocess, yaml\npickle.loads(b'')\nsubprocess.run('x', shell=True)\nyaml.load('')\neval('1')\n"
    )
    command = [BIN / "bandit", "--quiet", "--configfile", ROOT / "pyproject.toml", "--format", "json", bad]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert {"B301", "B602", "B506", "B307"} <= {result["test_id"] for result in found["results"]}


CODE = [path for top in ("jobs", "pipeline", "operators") for path in (ROOT / top).rglob("*.py")]
TO_ITS_CHILD = {ROOT / "pipeline/guard.py": 1, ROOT / "pipeline/child.py": 1}
"""A worker hands its recipe to a process that it starts, over a socket that nobody else has."""


@pytest.mark.parametrize("pattern", [
    r"\bimport (c?pickle|cloudpickle|marshal|shelve|dill|joblib)\b", r"\btorch\.load\(", r"\bnp\.load\(", r"allow_pickle=True",
    r"trust_remote_code=True", r"\byaml\.(unsafe_|full_)?load\(", r"(?<!\.)\b(eval|exec)\(", r"shell=True", r"verify=False",
    r"os\.system\(",
])  # fmt: skip
def test_no_code_of_ours_does_what_runs_data(pattern: str) -> None:
    allowed = TO_ITS_CHILD if "pickle" in pattern and "import" in pattern else {}
    assert {path: n for path in CODE if (n := len(re.findall(pattern, path.read_text())))} == allowed


def test_every_loader_of_transformers_is_told_to_stay_here() -> None:
    """A directory that was checked, no network, no code."""
    calls = [call for path in CODE for call in re.findall(r"\.from_pretrained\((.*?)\n\s*\)", path.read_text(), re.DOTALL)]
    assert len(calls) >= 5
    for call in calls:
        assert "local_files_only=True" in call
        assert "trust_remote_code=False" in call
        assert "use_safetensors=True" in call or "str(directory)" in call  # tokenizers have no weights


SECRETS = {
    "an access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a token of a forge": r"\b(gh[pousr]_[A-Za-z0-9]{36}|glpat-[\w-]{20})\b",
    "a token of a hub": r"\bhf_[A-Za-z]{34}\b",
    "a token of a chat": r"\bxox[baprs]-[\w-]{10,}",
    "a password in a URL": r"\b[a-z][a-z0-9+]*://[^/\s:@'\"{}$<*]+:(?!hunter2|pw)[^/\s@'\"{}$<*]+@(?!h\b|host|bucket|127)",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_is_committed(kind: str) -> None:
    tops = ("jobs", "pipeline", "operators", "docker", "configs", "docs", "benchmarks", "demo", "tests")
    files = [*ROOT.glob("*.*"), *(path for top in tops for path in (ROOT / top).rglob("*"))]
    texts = [
        p
        for p in files
        if p.is_file()
        and "node_modules" not in p.parts
        and p.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".cpu", ".cuda", ".cann", ".lock")
    ]
    assert len(texts) > 300
    assert [p for p in texts if p != Path(__file__) and re.search(SECRETS[kind], p.read_text())] == []


def test_manifests_install_nothing_at_run_time() -> None:
    for path in (ROOT / "docker" / "k8s").glob("*.yaml"):
        assert not re.search(r"\b(pip|conda|uv|working_dir|py_modules|image_uri)\b", path.read_text()), path
        for document in yaml.safe_load_all(path.read_text()):
            assert "runtimeEnvYAML" not in json.dumps(document)
