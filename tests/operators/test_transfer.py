"""What arrives on the device is what was sent, also while earlier copies are under way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.transfer import to_device

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_arrives_whole(device: str) -> None:
    arrays = [np.arange(n, dtype=t) + n for n in (5, 0, 70_000, 1, 300) for t in (np.int32, np.int64)] * 3
    arrays.append(np.arange(6, dtype=np.int64).reshape(2, 3))
    sent = [to_device(array, torch.device(device)) for array in arrays]
    for tensor, array in zip(sent, arrays, strict=True):
        assert tensor.device.type == device
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)
        assert tensor.cpu().numpy().dtype == array.dtype
