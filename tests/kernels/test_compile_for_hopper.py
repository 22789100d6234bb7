"""The fused kernel compiles for the GPUs that it was made for, into tensor-core code that keeps its numbers in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("`make test-kernels` runs these, in an environment of their own", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the program prints."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.kernels.compile_for_hopper"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_calls_share_one_variant_for_each_size_of_tile(variants: list[dict[str, Any]]) -> None:
    """Else packs of other lengths would compile in the middle of a run."""
    keys = [tuple(variant[key] for key in ("dtype", "D", "C2P", "P2C", "BLOCK")) for variant in variants]
    assert len(set(keys)) == len(keys) == 3 * 7  # combinations that the program asks for


def test_registers_suffice(variants: list[dict[str, Any]]) -> None:
    for variant in variants:
        # DeBERTa's own models all have heads of 64.
        assert variant["spilled"] <= (64 if variant["D"] == 128 else 0), variant


def test_all_products_are_for_tensor_cores(variants: list[dict[str, Any]]) -> None:
    assert all(variant["products"] > 0 for variant in variants)
