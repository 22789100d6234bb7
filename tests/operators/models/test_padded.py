"""Rectangles hold each window in a row of its own, masked behind it."""

from __future__ import annotations

import numpy as np
import pytest

from operators.models.padded import rectangles, takes_token_types
from operators.packing import Pack

PACK = Pack(np.array([7, 8, 9, 5], np.int32), np.array([0, 3, 4], np.int32), np.arange(2))


def test_each_window_is_a_row() -> None:
    made = rectangles(PACK, with_token_types=False)
    assert {name: values.tolist() for name, values in made.inputs.items()} == {
        "input_ids": [[7, 8, 9], [5, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert all(values.dtype == np.int64 for values in made.inputs.values())
    assert made.inputs["input_ids"].reshape(-1)[made.slots].tolist() == PACK.input_ids.tolist()


def test_token_types_are_those_of_the_pack_or_0() -> None:
    pack = Pack(PACK.input_ids, PACK.cu_seqlens, PACK.segments, token_types=np.array([0, 1, 1, 1], np.int32))
    assert rectangles(pack, with_token_types=True).inputs["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert rectangles(PACK, with_token_types=True).inputs["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("family", "takes"), [("bert", True), ("roberta", True), ("mpnet", False), ("modernbert", False)])
def test_some_families_take_no_token_types(family: str, takes: bool) -> None:
    assert takes_token_types(family) is takes
