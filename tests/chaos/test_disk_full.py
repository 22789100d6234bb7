"""A disk that is full in the middle of a run: it ends in words, no record stands without its data, and the rerun goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ledger.records import read_records
from pipeline.ledger.store import FileStore
from tests.chaos.store_fixtures import Corpus, _shards, corpus

__all__ = ["_shards", "corpus"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; needs root, and a kernel that lets it mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("a small tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_words_and_room_lets_it_go_on(corpus: Corpus, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (2 * 2**20 - 80_000))
    output = str(small_disk / "table")
    error = corpus.fail(corpus.config(corpus.s3.endpoint_url, output))
    assert "No space left on device" in str(error)
    store = FileStore(output)
    generation = next(iter((small_disk / "table" / "_records").iterdir())).name
    recorded = read_records(store, generation)
    assert recorded, "some pieces had room"
    assert all(len(store.get(r.file)) == r.bytes for r in recorded.values() if r.file)
    assert store.list("_commits") == []
    assert list(small_disk.rglob(".*.tmp")) == [], "halves of files would keep the disk full"

    ballast.unlink()
    report = corpus.run(corpus.config(corpus.s3.endpoint_url, output))
    assert (report["published"], report["reused"]) == (True, len(recorded))
    corpus.check(output)
