"""Variants run side by side in processes of their own, and one that fails does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.reporting import CORES
from benchmarks.workers import Run, Variant, compare, cosines

HERE = f"{Path(__file__).stem}"


def squares(sample: Sequence[int], plus: int) -> Run:
    """Each item's square, and the process and the threads that made it."""
    return lambda: [(item * item + plus, os.getpid(), torch.get_num_threads()) for item in sample]


def broken(sample: Sequence[int]) -> Run:
    """Cannot be loaded."""
    raise ValueError("no such backend\nand more")


def ends(sample: Sequence[int]) -> Run:
    """Takes its process with it."""
    return lambda: os._exit(9)


@pytest.mark.slow
def test_rounds_of_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    variants = [
        Variant("one", f"{HERE}:squares", {"plus": 1}),
        Variant("two", f"{HERE}:squares", {"plus": 2}, 2),
        Variant("broken", f"{HERE}:broken"),
        Variant("ends", f"{HERE}:ends"),
    ]
    one, two, failed, ended = compare(variants, [1, 2, 3, 4, 5], rounds=2)
    assert [value for value, _, _ in one.values] == [2, 5, 10, 17, 26]
    assert [value for value, _, _ in two.values] == [3, 6, 11, 18, 27]
    assert {threads for _, _, threads in one.values} == {CORES}
    assert {threads for _, _, threads in two.values} == {max(1, CORES // 2)}
    assert len({pid for _, pid, _ in two.values}) == 2
    assert len(one.usages) == len(two.usages) == 2
    assert failed.reason == "ValueError: no such backend"
    assert ended.reason == "the process ended with code 9"
    assert failed.usages == ended.usages == []


def test_cosines() -> None:
    mean, least = cosines([[1, 0], [0, 2], [1, 1]], [[3, 0], [2, 0], [1, 1]])
    assert mean == pytest.approx(2 / 3)
    assert least == pytest.approx(0)
