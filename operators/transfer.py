"""Numbers of the host on their way to the device, without making the host or the device wait.

A copy from ordinary memory stops the host until the device is through with all it has to do. On CUDA the numbers therefore go
through a ring of page-locked buffers and a stream of their own: they travel while the device still works on the pack before.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SLOTS = 16
"""Copies under way at once: a pack needs about eight (ids, positions, types, where windows end, rows of scores)."""


def to_device(values: Any, device: torch.device) -> Tensor:
    """The numpy array `values` as a tensor on `device`, of the same type and shape; on CPUs it shares the array's memory."""
    tensor = torch.from_numpy(values)
    return _ring(device).send(tensor) if device.type == "cuda" else tensor.to(device)


@dataclass
class _Slot:
    buffer: Tensor
    """uint8, page-locked; grows to what it must hold."""
    free: Any
    """Event: the last copy out of the buffer has ended."""


class _Ring:
    """Buffers that take turns. For one thread, as encoders are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda: Any = torch.get_device_module(device)
        self._stream = self._cuda.Stream(device)
        self._slots = [_Slot(torch.empty(0, dtype=torch.uint8), self._cuda.Event()) for _ in range(_SLOTS)]
        self._turn = 0

    def send(self, values: Tensor) -> Tensor:
        """On the device; work that the current stream gets from now on waits for the copy, the host does not."""
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % _SLOTS
        slot.free.synchronize()
        if slot.buffer.nbytes < values.nbytes:
            slot.buffer = torch.empty(2 * values.nbytes, dtype=torch.uint8, pin_memory=True)
        pinned = slot.buffer[: values.nbytes].view(values.dtype).view(values.shape)
        pinned.copy_(values)
        with self._cuda.stream(self._stream):
            sent = pinned.to(self._device, non_blocking=True)
            slot.free.record(self._stream)
        computing = self._cuda.current_stream(self._device)
        computing.wait_event(slot.free)
        sent.record_stream(computing)  # its memory must not be given away while that stream reads it
        return sent


@functools.cache
def _ring(device: torch.device) -> _Ring:
    return _Ring(device)
