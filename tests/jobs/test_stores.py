"""Whole jobs on every kind of store: a run, a night, a rollback, an older version."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import open_output
from pipeline.config import from_dict
from pipeline.flow import run
from pipeline.ledger.store import open_store
from pipeline.ledger.versions import rollback
from tests.conftest import Place
from tests.jobs.conftest import text


def test_a_job_its_next_night_and_the_way_back(place: Place, tiny_model: Path) -> None:
    source = open_store(f"{place.url}-in", place.storage_options)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [text(n, 20) for n in range(30)]}), sink)
    source.put("a.parquet", sink.getvalue().to_pybytes())
    lines = [json.dumps({"text": text(n, 9)}) + "\n" for n in range(20)]
    source.put("b.jsonl", "".join(lines).encode())
    config = from_dict(
        {
            "input": {"path": f"{place.url}-in", "storage_options": place.storage_options},
            "segments": {"overlap": 6},
            "tasks": {"vector": {"head": "embedding", "model": str(tiny_model)}},
            "output": {"path": place.url},
            "runtime": {"engine": "local", "device": "cpu"},
        }
    )
    first = run(config)
    assert (first["version"], first["encoded"], first["books"]["rows_out"]) == (1, 2, 50)
    source.put("b.jsonl", "".join(lines[:5]).encode())
    night = run(config)
    assert (night["version"], night["encoded"], night["books"]["rows_out"]) == (2, 1, 35)
    assert run(config)["published"] is False

    back = rollback(open_store(place.url, place.storage_options), 1)
    assert (back.version, back.restores) == (3, 1)
    rows = {v: open_output(place.url, version=v, storage_options=place.storage_options).count_rows() for v in (1, 2, 3)}
    assert rows == {1: 50, 2: 35, 3: 50}
