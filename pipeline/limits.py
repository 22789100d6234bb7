"""How long a piece may take and how much memory a worker may have, before that is called a loop or a runaway.

Generous where it is left to us: what takes longer than it may is only stopped in a worker, and judged later, alone, in a
process of its own (`pipeline.isolation`). A slow machine costs time then, and no good row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

_LEAST = 600.0
"""Seconds that a piece always has."""
_UNMEASURED = 1800.0
"""The same before a worker has measured anything: its first piece may wait for kernels to be compiled."""
_SLOWEST = 20
"""Bytes a second of the slowest honest encoder, a large one on a single weak core."""
_SLOWEST_READ = 50_000
"""Bytes a second of the slowest honest store."""
_MARGIN = 20
"""Times as long as the slowest piece of the same size."""
_PROBE = 60.0
"""Seconds of what is only tried, and divided further where it takes longer."""
_SHARE = 0.9
"""Of the machine's memory, that a worker may have."""
_SHARE_OF_FREE = 0.6
"""Of the memory that is free, that a process beside the worker may have."""
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Limits:
    """What the config says; None is left to us."""

    piece_seconds: float | None = None
    """For reading, for preparing and for encoding a piece, each."""
    worker_bytes: int | None = None
    """Resident memory of one worker."""

    def reading(self, shard_bytes: int) -> float:
        """Seconds for reading one piece of a shard; the pieces before it may have to be read past."""
        return _LEAST + shard_bytes / _SLOWEST_READ if self.piece_seconds is None else self.piece_seconds

    def taking_apart(self) -> float:
        """Seconds that it may take to find a poison row in a process beside the worker, at most. Nothing is settled meanwhile."""
        # The piece, its parts by sixteens, a row among others and alone, and the starts of processes.
        return _LEAST + (10 * self.piece_seconds if self.piece_seconds is not None else 3 * _LEAST + 2 * _UNMEASURED)

    def worker_memory(self) -> int:
        """Resident bytes of a worker."""
        return int(_SHARE * machine_memory()) if self.worker_bytes is None else self.worker_bytes

    def beside_memory(self) -> int:
        """Resident bytes of a process beside a worker, as things are."""
        if self.worker_bytes is not None:
            return self.worker_bytes
        return int(min(_SHARE * machine_memory(), _SHARE_OF_FREE * psutil.virtual_memory().available))


class Pace:
    """How long a stage takes on one worker: the limit of a piece follows from the slowest one so far."""

    def __init__(self, limits: Limits) -> None:
        self._fixed = limits.piece_seconds
        self._slowest: float | None = None  # seconds for one byte

    def add(self, size: int, seconds: float) -> None:
        """A piece of `size` bytes took `seconds`."""
        self._slowest = max(self._slowest or 0.0, seconds / max(size, 1))

    def limit(self, size: int) -> float:
        """Seconds that a piece of `size` bytes may take."""
        if self._fixed is not None:
            return self._fixed
        if self._slowest is None:
            return _UNMEASURED + size / _SLOWEST
        return max(_LEAST, _MARGIN * size * self._slowest)

    def probe(self, size: int) -> float:
        """Seconds after which several rows of `size` bytes together are better divided; wrong, it costs nothing but time."""
        if self._fixed is not None:
            return self._fixed
        return _LEAST if self._slowest is None else max(_PROBE, _MARGIN * size * self._slowest)


def machine_memory(read: Callable[[Path], str] = Path.read_text) -> int:
    """Bytes of memory of this machine, or of the container if it has less."""
    sizes = [int(psutil.virtual_memory().total)]
    for path in _CGROUP:
        try:
            sizes.append(int(read(path)))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(sizes)
