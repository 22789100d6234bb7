"""What every encoder backend must keep, found by its module."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import operators.encoders
from operators.models.layout import Layout, read_layout
from operators.packing import Pack
from tests.tiny import tiny_sentence_transformer

BACKENDS = sorted(m.name for m in pkgutil.iter_modules(operators.encoders.__path__) if not m.name.startswith("_"))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache, for what backends make of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A tiny model's layout."""
    return read_layout(tiny_sentence_transformer(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module", params=BACKENDS)
def encoder(request: pytest.FixtureRequest, layout: Layout) -> Any:
    """An encoder on the CPU in fp32."""
    return importlib.import_module(f"operators.encoders.{request.param}").load(layout, "cpu", "fp32")


def _pack(windows: list[list[int]], types: list[list[int]] | None = None) -> Pack:
    return Pack(
        input_ids=np.concatenate(windows).astype(np.int32),
        cu_seqlens=np.cumsum([0, *map(len, windows)]).astype(np.int32),
        segments=np.arange(len(windows)),
        token_types=None if types is None else np.concatenate(types).astype(np.int32),
    )


def test_a_vector_for_each_token(encoder: Any, layout: Layout) -> None:
    hidden = encoder.encode(_pack([[2, 9, 3], [2, 3]]))
    assert encoder.hidden_size == layout.hidden_size
    assert isinstance(encoder.padded, bool)
    assert hidden.shape == (5, layout.hidden_size)
    assert hidden.device == encoder.device
    assert hidden.is_floating_point()


def test_a_window_does_not_see_its_neighbours(encoder: Any) -> None:
    windows = [[2, 9, 30, 3], [2, 3], [2, *range(20, 50), 3], [2, 9, 30, 3]]
    together = encoder.encode(_pack(windows)).split([len(w) for w in windows])
    for window, hidden in zip(windows, together, strict=True):
        torch.testing.assert_close(hidden, encoder.encode(_pack([window])), rtol=0, atol=1e-5)
    assert (together[0][0] - together[2][0]).abs().max() > 1e-2


def test_token_types_count_and_are_0_where_none_are_given(encoder: Any) -> None:
    windows = [[2, 9, 3, 30, 3], [2, 3]]
    plain = encoder.encode(_pack(windows))
    torch.testing.assert_close(encoder.encode(_pack(windows, [[0] * 5, [0] * 2])), plain, rtol=0, atol=1e-5)
    pair = encoder.encode(_pack(windows, [[0, 0, 0, 1, 1], [0] * 2]))
    torch.testing.assert_close(pair[5:], plain[5:], rtol=0, atol=1e-5)
    assert (pair[:5] - plain[:5]).abs().max() > 1e-2
