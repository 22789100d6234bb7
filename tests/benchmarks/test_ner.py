"""Long documents give the entities of their single sentences, to the share that benchmarks/results/ner.md states."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from benchmarks.ner import DOCUMENTS, MODEL, by_pipeline, by_sentence, by_tidemill, compare, overlap


@pytest.mark.slow
def test_windows_find_what_single_sentences_hold_and_more_of_it_than_the_pipeline() -> None:
    documents = pq.read_table(DOCUMENTS).slice(0, 5).to_pylist()
    texts, gold = ([d[name] for d in documents] for name in ("text", "entities"))
    single = by_sentence(documents, MODEL, 512)
    ours, theirs = by_tidemill(texts, MODEL, 64), by_pipeline(texts, MODEL, 64, overlap(64))
    assert compare(ours, single)["f1"] >= max(0.97, compare(theirs, single)["f1"])
    assert compare(ours, gold)["f1"] >= max(compare(theirs, gold)["f1"], compare(single, gold)["f1"] - 0.005)
