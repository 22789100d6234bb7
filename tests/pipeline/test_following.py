"""When a format stays behind: what is said, what is tried again, and what of it may be printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import following
from pipeline.errors import ConfigError, TidemillError
from pipeline.following import ATTEMPTS, check_format, find_format, follow
from tests.format_cases import SCHEMA, Ledger, rows


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """One shard; pauses are short."""
    monkeypatch.setattr(following.time, "sleep", lambda seconds: None)
    ledger = Ledger(str(tmp_path), {})
    ledger.put("a", rows("a", 3))
    return ledger


def test_a_switch_whose_answer_is_lost_is_made_once(table: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    delta: Any = find_format("delta")
    switch, calls = delta.switch, []

    def loses_the_answer(place: Any, change: Any) -> None:
        calls.append(change.version)
        switch(place, change)
        raise TimeoutError

    monkeypatch.setattr(delta, "switch", loses_the_answer)
    assert table.follow("delta", table.publish()) == 0
    assert calls == [1]
    assert table.read("delta", 0) == table.expected()


def test_a_switch_that_never_works_is_said_without_secrets(table: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(place: Any, change: Any) -> None:
        calls.append(1)
        raise OSError("PUT https://account.blob/x?sig=hunter2&se=1 failed\nwith a body")

    monkeypatch.setattr(find_format("delta"), "switch", fails)
    commit = table.publish()
    with pytest.raises(TidemillError, match="version 1 is published, but delta does not hold it yet: OSError: PUT") as error:
        table.follow("delta", commit)
    assert len(calls) == ATTEMPTS
    assert error.value.exit_code == 1
    assert "hunter2" not in str(error.value)
    assert "body" not in str(error.value)


def test_a_store_that_the_library_cannot_reach_is_known_at_planning(table: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(place: Any) -> None:
        raise OSError("403")

    monkeypatch.setattr(find_format("delta"), "standing", refuses)
    with pytest.raises(ConfigError, match=r"output\.format: cannot read the table's delta: OSError: 403"):
        check_format("delta", table.store, {}, SCHEMA)


def test_parquet_asks_nothing_of_the_store(table: Ledger) -> None:
    commit = table.publish()
    nothing: Any = None
    check_format("parquet", nothing, {}, SCHEMA)
    assert follow("parquet", nothing, {}, commit) == {"format": "parquet", "format_version": 1}
