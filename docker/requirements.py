"""What the images install, without torch: the input of requirements.lock.   python docker/requirements.py

torch is left out, since each kind of machine has a build and hashes of its own; what it needs beside CUDA is not.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("s3", "gcs", "azure", "onnx", "openvino")


def requirements() -> list[str]:
    """Of Tidemill with all extras that a job may need, and of torch's build for CPUs."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    of_torch = [line for line in requires("torch") or [] if Requirement(line).marker is None]
    return sorted({line for line in [*lines, *of_torch, *_BUILD] if Requirement(line).name != "torch"})


_BUILD = ["setuptools>=77"]
"""With it the images build Tidemill's own wheel, without asking an index."""


if __name__ == "__main__":
    print("\n".join(requirements()))
