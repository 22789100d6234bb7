"""Long documents give the entities of their single sentences, to the share that benchmarks/results/ner.md states."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from benchmarks.ner import DOCUMENTS, MODEL, measure


@pytest.mark.slow
def test_windows_find_what_sentences_hold_and_more_than_the_pipeline() -> None:
    figures = measure(MODEL, pq.read_table(DOCUMENTS).slice(0, 8).to_pylist(), (64,))
    ours, theirs = figures["windows of 64"]["tidemill"], figures["windows of 64"]["pipeline"]
    print(figures)
    assert ours["f1"] >= 0.96
    assert ours["f1"] >= theirs["f1"]
    assert ours["gold f1"] >= max(theirs["gold f1"], figures["single sentences"]["gold f1"] - 0.01)
