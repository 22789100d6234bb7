"""Placement arithmetic: one CPU stays free, devices are shared evenly, nothing asks for more than there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.placement import Placement, Resources, Wish, place

GIB = 2**30


@given(
    nodes=st.integers(1, 8),
    cpus=st.integers(1, 256),
    devices=st.integers(1, 16),
    kind=st.sampled_from(["cpu", "cuda", "npu"]),
    workers=st.one_of(st.just("auto"), st.integers(1, 40)),
    stages=st.sampled_from(["auto", "fused", "split"]),
    todos=st.integers(1, 500),
)
def test_actors_never_take_the_last_cpu_nor_more_devices_than_there_are(
    nodes: int, cpus: int, devices: int, kind: str, workers: int | str, stages: str, todos: int
) -> None:
    wish = Wish(workers=workers, stages=stages, weights_bytes=100 * 2**20, todos=todos, pieces=todos)  # type: ignore[arg-type]
    placement = place(kind, Resources(nodes * cpus, devices, 64 * GIB, nodes), wish)
    # Equal machines, and workers spread evenly over them: each keeps room for a task beside its actors.
    used = placement.cpus_per_worker * placement.workers / nodes
    assert used <= max(cpus - 1, 0.25) + 1e-9
    assert placement.cpus_per_task <= cpus - used + 1e-9
    assert placement.cpus_per_worker > 0
    assert placement.workers >= 1
    if kind != "cpu":
        per_device = int(1 / placement.devices_per_worker + 1e-6)
        assert placement.workers <= per_device * devices
    if workers == "auto":
        assert placement.workers <= todos


def auto(kind: str, has: Resources, *, todos: int = 100, pieces: int = 0, weights: int = 90 * 2**20) -> Placement:
    return place(kind, has, Wish("auto", "auto", weights, todos, pieces or todos))


def test_two_cores_share_one_worker_fused_with_reading() -> None:
    placement = auto("cpu", Resources(2, 0, 16 * GIB))
    assert (placement.workers, placement.threads, placement.cpus_per_worker, placement.fused) == (1, 2, 1.0, True)


def test_large_machines_get_a_worker_for_every_four_cores() -> None:
    placement = auto("cpu", Resources(64, 0, 256 * GIB))
    assert (placement.workers, placement.threads) == (16, 4)


def test_a_worker_never_wants_more_than_one_machine_has() -> None:
    placement = auto("cpu", Resources(8, 0, 64 * GIB, nodes=4), pieces=1)
    assert (placement.workers, placement.threads) == (1, 2)
    assert placement.cpus_per_worker <= 2


def test_one_span_of_work_gets_one_worker_with_every_thread() -> None:
    placement = auto("cpu", Resources(8, 0, 16 * GIB), todos=1)
    assert (placement.workers, placement.threads) == (1, 8)


def test_one_large_chain_is_read_by_a_task_for_many_workers() -> None:
    placement = auto("cpu", Resources(8, 0, 16 * GIB), todos=1, pieces=50)
    assert (placement.workers, placement.fused) == (2, False)


def test_memory_bounds_the_workers() -> None:
    assert auto("cpu", Resources(64, 0, 16 * GIB), weights=2 * GIB).workers == 1


def test_four_gpus_get_four_workers_beside_cpu_stages() -> None:
    placement = auto("cuda", Resources(16, 4, 64 * GIB))
    assert (placement.workers, placement.threads, placement.fused) == (4, 0, False)
    assert placement.ray_options == {"num_cpus": 1.0, "num_gpus": 1.0}


def test_more_workers_than_devices_share_them() -> None:
    placement = place("npu", Resources(16, 2, 64 * GIB), Wish(4, "auto", GIB, 100, 100))
    assert placement.ray_options == {"num_cpus": 1.0, "resources": {"NPU": 0.5}}


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime.device: no cuda device"):
        auto("cuda", Resources(8, 0, GIB))
