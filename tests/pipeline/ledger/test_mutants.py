"""Mutants of the protocol, each with one rule broken: a simulator that lets one live would prove nothing about the real thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pipeline.errors import TidemillError
from pipeline.ledger import books, publish, records
from pipeline.ledger.pieces import Span
from pipeline.ledger.publish import Commit, Draft
from pipeline.ledger.records import Record
from pipeline.ledger.store import Exists, Store, Unknown
from tests.pipeline.ledger import simulator
from tests.pipeline.ledger.fake_engine import Job, Piece, encode
from tests.pipeline.ledger.interleave import decoded_once
from tests.pipeline.ledger.mutants import OF_VACUUM
from tests.pipeline.ledger.scenarios import HISTORIES
from tests.pipeline.ledger.simulator import Client
from tests.pipeline.ledger.tally import count

SEEDS = 100
"""Histories of each kind that a mutant must not outlive."""


def commits_are_put(patch: pytest.MonkeyPatch) -> None:
    """Commits overwrite instead of create-only."""
    _overwrite(patch, "_commits/")


def records_are_put(patch: pytest.MonkeyPatch) -> None:
    """Records overwrite instead of create-only."""
    _overwrite(patch, "_records/")


def _overwrite(patch: pytest.MonkeyPatch, prefix: str) -> None:
    create = Client.create
    patch.setattr(
        Client, "create", lambda self, key, data: (self.put if key.startswith(prefix) else create.__get__(self))(key, data)
    )


def record_before_data(patch: pytest.MonkeyPatch) -> None:
    """A crash between the two leaves a record that names nothing."""

    def settle(client: Client, job: Job, span: Span, piece: Piece) -> Record:
        files, record = encode(job, span, piece)
        winner = records.write_record(client, record, pause=client.pause)
        for key, data in files.items():
            client.put(key, data)
        return winner

    patch.setattr(simulator, "settle", settle)


def commit_before_manifest(patch: pytest.MonkeyPatch) -> None:
    """A crash between the two leaves a version that cannot be opened."""

    def commit_once(store: Store, commit: Commit, table: Sequence[Record]) -> bool:
        held: list[tuple[str, bytes]] = []
        put = store.put
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(store, "put", lambda key, data: held.append((key, data)))
            done = original(store, commit, table)
        for key, data in held:
            put(key, data)
        return done

    original = publish.commit_once
    patch.setattr(publish, "commit_once", commit_once)


def loser_keeps_its_own_record(patch: pytest.MonkeyPatch) -> None:
    """The manifest names the loser's files, the record the winner's."""

    def write_record(store: Store, record: Record, pause: Callable[[float], None]) -> Record:
        original(store, record, pause)
        return record

    original = records.write_record
    patch.setattr(records, "write_record", write_record)


def books_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    """Whatever is there is published."""
    patch.setattr(books, "close", lambda spans, known: list(known))


def partial_chains_are_published(patch: pytest.MonkeyPatch) -> None:
    """A chain need not reach its end."""
    original = books.check_chain
    patch.setattr(books, "check_chain", lambda span, chain: (p for p in original(span, chain) if "do not end" not in p))


def begun_spans_count_as_complete(patch: pytest.MonkeyPatch) -> None:
    """A rerun does not finish what a killed run began."""
    patch.setattr(records, "is_complete", bool)


def done_pieces_are_done_again(patch: pytest.MonkeyPatch) -> None:
    """A rerun forgets which pieces of a span have records."""
    original = records.find_work
    patch.setattr(records, "find_work", lambda spans, known: [replace(t, done=frozenset()) for t in original(spans, known)])


def rivals_are_dropped(patch: pytest.MonkeyPatch) -> None:
    """The next version is the run's own pieces, without those that a rival committed meanwhile."""
    patch.setattr(publish, "union", lambda draft, before: list(draft.records))


def old_versions_of_shards_stay(patch: pytest.MonkeyPatch) -> None:
    """The union is one of pieces, not of shards."""

    def union(draft: Draft, before: Sequence[Record]) -> list[Record]:
        mine = {r.piece for r in draft.records}
        return [*draft.records, *(r for r in before if r.piece not in mine and draft.keep_removed)]

    patch.setattr(publish, "union", union)


def generations_mix(patch: pytest.MonkeyPatch) -> None:
    """Pieces of the old generation stay in the new one's version."""

    def current_records(store: Store, commit: Commit | None, generation: str) -> list[Record]:
        return publish.manifest_records(store, commit) if commit else []

    patch.setattr(publish, "current_records", current_records)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """A late run of the old generation takes the table back."""
    patch.setattr(publish, "fence", lambda draft, current: None)


def retries_blindly(patch: pytest.MonkeyPatch) -> None:
    """After a lost answer the run commits once more without looking for its own commit."""
    patch.setattr(publish, "find_own", lambda *_: None)


def unknown_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    """No answer is taken for a good answer."""

    def create(client: Client, key: str, data: bytes) -> None:
        try:
            original(client, key, data)
        except Unknown:
            return

    original = Client.create
    patch.setattr(Client, "create", create)


def losing_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    """A run whose commit came second believes that it published."""

    def create(client: Client, key: str, data: bytes) -> None:
        try:
            original(client, key, data)
        except Exists:
            if not key.startswith("_commits/"):
                raise

    original = Client.create
    patch.setattr(Client, "create", create)


MUTANTS = [
    commits_are_put,
    records_are_put,
    record_before_data,
    commit_before_manifest,
    loser_keeps_its_own_record,
    books_are_not_closed,
    partial_chains_are_published,
    begun_spans_count_as_complete,
    done_pieces_are_done_again,
    rivals_are_dropped,
    old_versions_of_shards_stay,
    generations_mix,
    no_fence,
    retries_blindly,
    unknown_counts_as_done,
    losing_counts_as_done,
]


@pytest.mark.parametrize("mutant", [*MUTANTS, *OF_VACUUM], ids=lambda mutant: mutant.__name__)
def test_the_simulator_catches(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    with decoded_once():
        for seed in range(SEEDS):
            for history, _ in HISTORIES:
                try:
                    history(seed)
                except (AssertionError, OSError, TidemillError):
                    count(f"mutant-{mutant.__name__}", mutants=1)
                    return
    pytest.fail(f"{mutant.__name__} lived through {SEEDS} seeds")
