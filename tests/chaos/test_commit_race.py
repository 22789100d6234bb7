"""Sixteen writers publish to one table at once, through a store that refuses, breaks off and loses answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from pipeline.ledger.pieces import Shard, Span
from pipeline.ledger.publish import Commit, Draft, encode_schema, head, manifest_records, publish, read_commit
from pipeline.ledger.records import Record
from pipeline.ledger.store import open_store
from tests.chaos.profile import scaled
from tests.chaos.proxy import Rule
from tests.chaos.store_fixtures import Corpus, _shards, corpus, polling

__all__ = ["_shards", "corpus"]

WRITERS = 16


def draft(name: str) -> Draft:
    """One shard of ten rows, each of them in quarantine, so that no data file is needed."""
    span = Span(Shard(name, f"/in/{name}", "v1", 100), 0, 10, 1000, rows=10)
    record = Record(
        piece=span.piece_id(0), index=0, shard=name, version="v1", start=0, span_start=0, span_stop=10, stop=10, piece_bytes=1000,
        generation="g", file=None, bytes=0, sha256="", quarantine_file=f"quarantine/g/{name}", rows_in=10, rows_out=0,
        quarantined={"bad_json": 10}, filtered=0, schema="s", statistics={}, last=True,
    )  # fmt: skip
    schema = encode_schema(pa.schema([pa.field("id", pa.string())]))
    return Draft(name, "g", {}, {"piece_bytes": 1000}, schema, [record], frozenset({name}), keep_removed=True, base=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(scaled(1, 20)))
def test_each_version_has_one_winner_and_no_update_is_lost(corpus: Corpus, seed: int) -> None:
    output = corpus.new_output()
    rules = [Rule("lost", "^PUT .*/_commits/", 0.3), *(Rule(kind, "", 0.05) for kind in ("torn", "reset", "busy"))]
    barrier = threading.Barrier(WRITERS)
    with corpus.proxy(seed, *rules) as proxy, polling(output, corpus.s3.storage_options) as seen:

        def write(n: int) -> Commit:
            # Each with a client of its own, as processes have.
            store = open_store(output, {"endpoint_url": proxy.endpoint_url, "skip_instance_cache": True})
            mine = draft(f"shard-{n:02}")
            store.put(f"quarantine/g/shard-{n:02}", b"rows")
            barrier.wait()
            return publish(store, mine, count_duplicates=lambda _: 0)

        with ThreadPoolExecutor(WRITERS) as pool:
            commits = list(pool.map(write, range(WRITERS)))
        assert all(rule.struck for rule in rules)
    assert sorted(commit.version for commit in commits) == list(range(1, WRITERS + 1)), "one winner for each version"
    store = open_store(output, corpus.s3.storage_options)
    assert {read_commit(store, c.version).run_id for c in commits} == {f"shard-{n:02}" for n in range(WRITERS)}
    newest = head(store)
    assert newest is not None
    assert [r.shard for r in manifest_records(store, newest)] == [f"shard-{n:02}" for n in range(WRITERS)]
    assert (newest.version, newest.totals["rows_in"]) == (WRITERS, 10 * WRITERS)
    assert seen
    corpus.counts["commits raced"] += WRITERS
