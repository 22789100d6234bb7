"""Images and manifests: real linters and strict schemas, and proof that those find mistakes."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.config import from_dict

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
KUBERNETES = "1.34"
SCHEMA = json.loads((ROOT / "tests/data/rayjob.schema.json").read_text())

Document = dict[str, Any]


def manifest(kind: str) -> Document:
    """The document of that kind in rayjob.yaml."""
    documents: list[Document] = list(yaml.safe_load_all((ROOT / "docker/k8s/rayjob.yaml").read_text()))
    (found,) = [d for d in documents if d["kind"] == kind]
    return found


def pod_templates(rayjob: Document) -> Iterator[Document]:
    """The pod templates of the head and of each worker group."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]


def check(rayjob: Document) -> None:
    """Raise ValidationError unless RayJob and pods have known keys of the right types only."""
    jsonschema.validate(rayjob, SCHEMA)
    for template in pod_templates(rayjob):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    """Run the real hadolint on one file."""
    return subprocess.run([Path(sys.executable).parent / "hadolint", "--no-color", path], capture_output=True, text=True)


def test_there_is_an_image_for_each_device() -> None:
    assert [path.suffix for path in DOCKERFILES] == [".cann", ".cpu", ".cuda"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_dockerfiles_are_clean(path: Path) -> None:
    done = hadolint(path)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_mistakes(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp\n")
    done = hadolint(bad)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_have_two_stages_and_run_as_a_numbered_user(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert sum(line.startswith("FROM ${") for line in lines) == 2, "both stages start from the image of the build argument"
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_copy_what_the_wheel_needs(path: Path) -> None:
    copied = {source for line in path.read_text().splitlines() if line.startswith("COPY ") for source in line.split()[1:-1]}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "tidemill.py", "jobs", "operators", "pipeline"} <= copied
    assert all((ROOT / source).exists() for source in copied if not source.startswith(("--", "/")))


def test_the_rayjob_fits_the_schemas() -> None:
    check(manifest("RayJob"))
    kubernetes_validate.validate(manifest("ConfigMap"), KUBERNETES, strict=True)


def first_container(rayjob: Document) -> Document:
    """The head's container."""
    container: Document = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


MISTAKES: dict[str, Callable[[Document], None]] = {
    "misspelt key of the job": lambda j: j["spec"].update(ttlSecondAfterFinished=j["spec"].pop("ttlSecondsAfterFinished")),
    "word for a number": lambda j: j["spec"].update(backoffLimit="two"),
    "unknown mode": lambda j: j["spec"].update(submissionMode="HttpMode"),
    "misspelt key of the cluster": lambda j: j["spec"]["rayClusterSpec"].update(authOption={"mode": "token"}),
    "misspelt key of a group": lambda j: j["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replica=1),
    "number for a text": lambda j: j["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    "misspelt key of a container": lambda j: first_container(j).update(resuorces=first_container(j).pop("resources")),
    "misspelt key of a security context": lambda j: first_container(j)["securityContext"].update(runAsNonRot=True),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_schemas_find_mistakes(mistake: str) -> None:
    rayjob = copy.deepcopy(manifest("RayJob"))
    MISTAKES[mistake](rayjob)
    with pytest.raises(jsonschema.ValidationError):
        check(rayjob)


def test_pods_are_locked_down() -> None:
    templates = list(pod_templates(manifest("RayJob")))
    assert len(templates) == 2
    for template in templates:
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            locked = container["securityContext"]
            assert locked["allowPrivilegeEscalation"] is False
            assert locked["readOnlyRootFilesystem"] is True
            assert locked["capabilities"] == {"drop": ["ALL"]}


def test_the_cluster_asks_for_a_token_and_goes_away() -> None:
    spec = manifest("RayJob")["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"] is True


def test_the_rayjob_runs_the_same_command_on_a_job_that_loads() -> None:
    folder, file = "/etc/tidemill", "job.yaml"
    assert manifest("RayJob")["spec"]["entrypoint"] == f"python -m jobs run {folder}/{file}"
    from_dict(yaml.safe_load(manifest("ConfigMap")["data"][file]))
    for template in pod_templates(manifest("RayJob")):
        (volume,) = [v["name"] for v in template["spec"]["volumes"] if v.get("configMap") == {"name": "tidemill-job"}]
        mounts = [m["mountPath"] for c in template["spec"]["containers"] for m in c["volumeMounts"] if m["name"] == volume]
        assert mounts == [folder]
