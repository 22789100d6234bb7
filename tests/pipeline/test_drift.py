"""The comparison of nights: resampled documents raise no alarm, a shift does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from operators.schema import N_SEGMENTS, N_TOKENS
from pipeline.drift import Candidate, describe, find_drift
from pipeline.holding import hold
from pipeline.ledger.notes import files_of
from pipeline.ledger.publish import Commit, Draft, encode_schema, publish
from pipeline.ledger.records import Record
from pipeline.ledger.store import FileStore, Store
from pipeline.quality import plain_books, readable, statistics
from pipeline.sections import Quality

LABELS = np.array(["politics", "sport", "weather", "culture"])
MOOD = pa.struct([("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])
SCHEMA = pa.schema([("mood", MOOD), ("vector", pa.list_(pa.float32(), 8)), (N_TOKENS, pa.int32()), (N_SEGMENTS, pa.int32())])
FINGERPRINT = {
    "tasks": {"mood": {"head": "sequence_classification", "settings": {}}, "vector": {"head": "embedding", "settings": {}}}
}
USUAL = (0.4, 0.3, 0.2, 0.1)
SHIFTED = (0.15, 0.35, 0.2, 0.3)

Rows = npt.NDArray[np.int64]


def corpus(count: int, shares: tuple[float, ...] = USUAL, seed: int = 0) -> pa.Table:
    """Documents whose labels have these shares, with scores, vectors and lengths that depend on the label."""
    rng = np.random.default_rng(seed)
    label = rng.choice(4, count, p=shares)
    logits = rng.normal(size=(count, 4)) + 3 * np.eye(4)[label]
    scores = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    vectors = (rng.normal(size=(count, 8)) + np.eye(8)[label]).astype(np.float32)
    moods = [{"label": LABELS[s.argmax()], "score": s.max(), "scores": s} for s in scores]
    tokens = rng.lognormal(4 + label / 4, 1, count).astype(int)
    return pa.table([moods, list(vectors), tokens, 1 + tokens // 100], schema=SCHEMA)


def record(documents: pa.Table, shard: str, generation: str = "g", **changed: Any) -> Record:
    found = statistics(documents, [n for n in documents.column_names if n in ("mood", "vector")])
    plain: dict[str, Any] = {
        "piece": f"{generation}-{shard}", "index": 0, "shard": shard, "version": "1", "start": 0, "span_start": 0,
        "stop": 1, "piece_bytes": 1, "generation": generation, "file": f"data/{generation}/{shard}.parquet", "bytes": 1,
        "sha256": "", "span_stop": None,
        "quarantine_file": None, "rows_in": documents.num_rows, "rows_out": documents.num_rows, "quarantined": {}, "filtered": 0,
        "schema": "s", "statistics": found, "last": True,
    }  # fmt: skip
    return Record(**{**plain, **changed})


@pytest.fixture
def table(tmp_path: Any) -> tuple[Store, Callable[..., Commit]]:
    """A store, and how to commit records to it as the next version."""
    store = FileStore(str(tmp_path))

    def commit(*records: Record, base: int = 0, run_id: str = "run", schema: pa.Schema = SCHEMA) -> Commit:
        draft = Draft(run_id, records[0].generation, FINGERPRINT, {}, encode_schema(schema), records, frozenset(
            r.shard for r in records), True, base)  # fmt: skip
        if run_id.startswith("held"):
            hold(store, draft, has_ids=False, single_writer=False, why="", findings={"drift": {}})
        for key in (key for record in records for key in files_of(record)):
            store.put(key, b"rows")
        return publish(store, draft, count_duplicates=lambda _: 0)

    return store, commit


def judge(store: Store, base: Commit | None, *records: Record, schema: pa.Schema = SCHEMA, **settings: Any) -> dict[str, Any]:
    fingerprint = {"tasks": {name: FINGERPRINT["tasks"][name] for name in schema.names if name in FINGERPRINT["tasks"]}}
    return find_drift(store, base, Candidate(records[0].generation, fingerprint, schema, records), Quality(**settings))


def test_two_hundred_nights_without_a_shift_and_with_one(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    usual, shifted = corpus(4000), corpus(4000, SHIFTED, seed=1)
    base = commit(record(corpus(3000, seed=2), "old"))
    rng = np.random.default_rng(3)
    alarms = found = 0
    lowest = np.inf
    for night in range(200):
        size = int(rng.integers(250, 1200))
        calm = judge(store, base, record(usual.take(pa.array(rng.integers(0, 4000, size))), f"n{night}"))
        assert calm["verdict"] in ("calm", "drift")
        alarms += calm["verdict"] == "drift"
        drift = judge(store, base, record(shifted.take(pa.array(rng.integers(0, 4000, size))), f"n{night}"))
        labels = [f for f in drift["findings"] if (f["task"], f["statistic"]) == ("mood", "label")]
        found += drift["verdict"] == "drift" and bool(labels)
        lowest = min(lowest, drift["psi"]["mood"]["label"])
    assert lowest > 0.2
    assert alarms <= 2
    assert found >= 198


def test_a_finding_says_what_moved(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    base = commit(record(corpus(1000), "a"))
    drift = judge(store, base, record(corpus(1000, SHIFTED, seed=1), "b"))
    assert (drift["documents"], drift["reference"]) == (1000, {"versions": [1, 1], "documents": 1000})
    finding = next(f for f in drift["findings"] if f["statistic"] == "label")
    assert set(finding["moved"]) >= {"politics", "culture"}
    assert "task mood: label drifted, PSI " in describe(finding)
    assert "politics" in describe(finding)


def test_there_is_no_verdict_without_enough_documents(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    few, many = record(corpus(150, SHIFTED), "few"), record(corpus(600, SHIFTED), "many")
    assert judge(store, None, many)["why"] == "the table has no earlier version"
    base = commit(record(corpus(1000), "a"))
    assert "150 new documents are fewer" in judge(store, base, few)["why"]
    assert judge(store, base, few, min_documents=100)["verdict"] == "drift"
    assert judge(store, base, record(corpus(1000), "a"))["why"] == "no piece is new"
    assert judge(store, base, many, drift="off")["verdict"] == "off"
    assert judge(store, base, many, psi=9)["verdict"] == "calm"


def test_records_from_before_there_were_statistics_are_no_reference(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    base = commit(record(corpus(1000), "a", statistics={"tokens": 1}))
    assert "count 0 documents" in judge(store, base, record(corpus(600), "b"))["why"]


def test_new_pieces_are_compared_with_what_the_last_versions_added(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    base = commit(record(corpus(5000), "first"))
    for number in range(3):
        base = commit(record(corpus(400, SHIFTED, seed=number), f"n{number}"), base=base.version)
    night = record(corpus(400, SHIFTED, seed=9), "n9")
    assert judge(store, base, night, versions=3)["reference"] == {"versions": [2, 4], "documents": 1200}
    assert judge(store, base, night, versions=3)["verdict"] == "calm"
    whole = judge(store, base, night, versions=7)
    assert (whole["verdict"], whole["reference"]) == ("drift", {"versions": [1, 4], "documents": 6200})


def test_an_accepted_night_is_the_new_normal_and_the_old_one_stays_so(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    commit(record(corpus(5000), "first"))
    night = record(corpus(400, SHIFTED, seed=1), "n1")
    base = commit(night, base=1, run_id="held1")
    assert judge(store, base, record(corpus(400, SHIFTED, seed=2), "n2"))["verdict"] == "calm"
    assert judge(store, base, record(corpus(400, seed=3), "n3"))["verdict"] == "calm"
    assert judge(store, base, record(corpus(400, (0, 0, 0.1, 0.9), seed=4), "n4"))["verdict"] == "drift"


def test_a_new_generation_is_compared_whole_but_for_what_cannot_be(table: tuple[Store, Callable[..., Commit]]) -> None:
    store, commit = table
    documents = corpus(1000)
    base = commit(record(documents, "a"))
    same = judge(store, base, record(documents, "a", "h"))
    assert (same["verdict"], same["documents"]) == ("calm", 1000)
    assert not [name for name in same["psi"]["vector"] if "direction" in name]
    assert judge(store, base, record(corpus(1000, SHIFTED), "a", "h"))["verdict"] == "drift"

    wider = SCHEMA.set(1, pa.field("vector", pa.list_(pa.float32(), 4)))
    cut = documents.set_column(
        1, "vector", pa.array([v[:4] for v in documents["vector"].to_pylist()], wider.field("vector").type)
    )
    assert "type changed" in judge(store, base, record(cut, "a", "h"), schema=wider)["skipped"]["vector"]
    moods = [{**row, "label": row["label"].upper()} for row in documents["mood"].to_pylist()]
    renamed = judge(store, base, record(documents.set_column(0, "mood", pa.array(moods, MOOD)), "a", "h"))
    assert renamed["skipped"] == {"mood": "no label is as before"}
    assert renamed["verdict"] == "calm"


def test_people_read_shares_and_means(table: tuple[Store, Callable[..., Commit]]) -> None:
    _, commit = table
    documents = corpus(500)
    totals = commit(record(documents.slice(0, 200), "a"), record(documents.slice(200), "b")).totals
    shown = readable(totals["statistics"])
    moods = documents["mood"].to_pylist()
    assert shown["documents"] == 500
    assert sum(shown["lengths"].values()) == 500
    mood = shown["tasks"]["mood"]
    assert mood["labels"] == {n: sum(m["label"] == n for m in moods) for n in mood["labels"]}
    assert mood["mean_score"] == pytest.approx(np.mean([m["score"] for m in moods]), abs=1e-4)
    norms = np.linalg.norm(np.array(documents["vector"].to_pylist()), axis=1)
    assert shown["tasks"]["vector"]["norm"] == pytest.approx({"mean": norms.mean(), "deviation": norms.std()}, abs=1e-4)
    assert plain_books(totals)["statistics"] == {}
    assert readable({"tokens": 3}) == {}


def test_names_of_tasks_may_hold_what_separates_names() -> None:
    documents = corpus(20).rename_columns(["a:b", "vector", N_TOKENS, N_SEGMENTS])
    assert set(readable(statistics(documents, ["a:b"]))["tasks"]) == {"a:b"}
