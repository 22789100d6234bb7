"""Where the stages run: how many encoder workers, with which threads and Ray resources, fused with reading or not.

Integer arithmetic on what the machine or cluster has, so that it is tested without one. Two rules come from measurement:
actors that together reserve every CPU starve the tasks beside them without a word, so one CPU stays free of actors; and
where encoders run on CPUs, reading, preparing and writing inside the encoder's actor keeps more of the bare engine's
speed than stages of their own, which compete for the same cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError

_LANES = 4
"""CPUs of one worker at most: each encodes packs of its own on the same weights; more would wait for Python's lock."""

_MEMORY_PER_WORKER = 1 << 30
"""Bytes that a CPU worker needs beside its weights: interpreter, torch, one piece and its packs."""


@dataclass(frozen=True)
class Resources:
    """What a machine or a Ray cluster offers: CPUs, devices of the chosen kind, bytes of memory."""

    cpus: float
    devices: float
    memory: int
    nodes: int = 1
    """Machines that the CPUs are on."""


@dataclass(frozen=True)
class Placement:
    """Encoder workers and what each reserves. `fused`: reading and writing happen inside the encoder's actor."""

    kind: str
    workers: int
    threads: int
    """Threads that encode in each worker; 0 leaves torch's own choice (accelerators)."""
    cpus_per_worker: float
    devices_per_worker: float
    cpus_per_task: float
    """CPUs of one reading or writing task where they are stages of their own."""
    fused: bool

    @property
    def ray_options(self) -> dict[str, Any]:
        """Resource arguments of an encoder actor, for Ray."""
        options: dict[str, Any] = {"num_cpus": self.cpus_per_worker}
        if self.kind == "cuda":
            options["num_gpus"] = self.devices_per_worker
        elif self.kind == "npu":
            options["resources"] = {"NPU": self.devices_per_worker}
        return options


@dataclass(frozen=True)
class Wish:
    """What the config asks for and what the job needs."""

    workers: Literal["auto"] | int
    stages: Literal["auto", "fused", "split"]
    weights_bytes: int
    todos: int
    """Spans with work left, each read by one task."""
    pieces: int
    """About how many pieces these hold: more workers than these would idle."""


def place(kind: str, has: Resources, wish: Wish) -> Placement:
    """The placement for device `kind`; ConfigError where the devices asked for are not there."""
    if kind != "cpu" and has.devices < 1:
        raise ConfigError(
            f"no {kind} device is offered here; choose runtime.device: cpu, or join a cluster that has one",
            field="runtime.device",
        )
    cpus = max(1, int(has.cpus))
    cpus_per_node = max(1, cpus // has.nodes)
    per_device = 1
    if wish.workers != "auto":
        workers = wish.workers
        if kind != "cpu":
            per_device = -(-workers // int(has.devices))
    elif kind == "cpu":
        in_memory = has.memory * 6 // 10 // (2 * wish.weights_bytes + _MEMORY_PER_WORKER)
        workers = max(1, min(has.nodes * -(-cpus_per_node // _LANES), in_memory))
    else:
        workers = int(has.devices)
    if wish.workers == "auto":
        workers = max(1, min(workers, wish.pieces))
    # A fused worker keeps a span to itself: with fewer spans than workers (one large compressed file) some would idle.
    fused = wish.stages == "fused" or (wish.stages == "auto" and kind == "cpu" and wish.todos >= workers)
    # On each machine one CPU stays free of actors; where there is a single one they share it in quarters.
    free_for_actors = cpus - has.nodes if cpus > has.nodes else 0.25 * cpus
    threads = max(1, min(cpus // workers, cpus_per_node)) if kind == "cpu" else 0
    per_worker = free_for_actors / workers
    return Placement(
        kind=kind,
        workers=workers,
        threads=threads,
        cpus_per_worker=_floor(min(per_worker, max(1, threads))),
        devices_per_worker=0.0 if kind == "cpu" else _floor(1 / per_device),
        cpus_per_task=1.0 if cpus >= 4 * has.nodes else 0.5 if cpus >= 2 * has.nodes else 0.25,
        fused=fused,
    )


def _floor(value: float) -> float:
    """Rounded down to Ray's resolution of 1/10,000, so that the sum never exceeds what there is."""
    return max(int(value * 10_000), 1) / 10_000
