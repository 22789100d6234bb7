"""Attempts are counted by create-only markers, on every store, also by workers that begin at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.attempts import MOST, attempt_key, begin
from pipeline.ledger.store import FileStore, Store, Unknown, open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    if request.param == "local":
        return open_store(str(tmp_path / "table"))
    make_url: Callable[[], str] = request.getfixturevalue("s3_url")
    server: Any = request.getfixturevalue("s3_server")
    return open_store(make_url(), server.storage_options)


def test_attempts_are_counted_for_each_piece_and_stage(store: Store) -> None:
    assert [begin(store, "g", "p", "run") for _ in range(MOST + 2)] == [*range(MOST), MOST, MOST]
    assert begin(store, "g", "q", "run") == begin(store, "h", "p", "run") == begin(store, "g", "p", "run", "encode-") == 0
    assert store.list("_attempts/h") == [attempt_key("h", "p", 0)]
    assert len(store.list("_attempts/g")) == MOST + 2


def test_workers_that_begin_at_once_count_each_other(store: Store) -> None:
    with ThreadPoolExecutor(MOST) as pool:
        assert sorted(pool.map(lambda _: begin(store, "g", "p", "run"), range(MOST))) == list(range(MOST))


def test_a_marker_without_an_answer_counts_as_made(tmp_path: Path) -> None:
    class Silent(FileStore):
        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            raise Unknown("no answer")

    store = Silent(str(tmp_path))
    assert [begin(store, "g", "p", "run") for _ in range(3)] == [0, 1, 2]
