"""The benchmark corpus has the lengths that were asked for, and is the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, corpus.Statistics]]:
    """A corpus of the project's and of Python's own text alone, to save time."""
    out = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_PACKAGES", ())
        corpus._sources.cache_clear()
        yield out, corpus.build(out, corpus.long_tail(40_000))
        corpus._sources.cache_clear()


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.parquet")))).hexdigest()


@pytest.mark.slow
def test_two_builds_are_the_same(built: tuple[Path, corpus.Statistics], tmp_path: Path) -> None:
    out, statistics = built
    assert corpus.build(tmp_path, corpus.long_tail(40_000)) == statistics
    assert digest(tmp_path) == digest(out)


@pytest.mark.slow
def test_documents_have_a_long_tail_and_are_all_different(built: tuple[Path, corpus.Statistics]) -> None:
    out, statistics = built
    shards = sorted((out / "shards").glob("*.parquet"))
    table = pq.read_table(out / "shards")
    assert len(shards) == 8
    assert len(set(table["text"].to_pylist())) == len(set(table["doc_id"].to_pylist())) == statistics["documents"]
    assert statistics["tokens"] == pytest.approx(40_000, rel=0.03)
    assert statistics["p50"] == pytest.approx(250, rel=0.1)
    assert statistics["max"] > 10 * statistics["mean"]


@pytest.mark.parametrize("tokens", [100, 80_000, 2_000_000])
def test_lengths_sum_to_what_was_asked(tokens: int) -> None:
    lengths = corpus.long_tail(tokens)
    assert tokens <= sum(lengths) <= tokens + max(lengths)
    assert max(lengths) <= 20_000
    if len(lengths) > 100:
        assert np.median(lengths) == pytest.approx(250, rel=0.02)
        assert np.log(lengths).std() == pytest.approx(1.3, rel=0.05)


def test_statistics_say_what_windows_keep() -> None:
    found = corpus.describe(np.array([100, 254, 1000]))
    assert found["tokens"] == 1354
    assert found["kept at 256"] == pytest.approx((100 + 254 + 254) / 1354, abs=1e-4)
    assert found["kept at 512"] == pytest.approx((100 + 254 + 510) / 1354, abs=1e-4)
