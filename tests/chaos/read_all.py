"""Plans and reads shards as a run does, one after another, and prints what came of each: a process of its own, so that a crash
is seen and memory is measured.

    python -m tests.chaos.read_all FOLDER [FIRST]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.peak import peak_bytes
from operators.schema import ROW, TEXT
from pipeline.errors import ConfigError
from pipeline.ledger.pieces import Todo
from pipeline.sections import Input
from pipeline.source.listing import list_shards
from pipeline.source.planning import Pins, plan_source
from pipeline.source.reading import ReadRecipe, read_span


def read(path: Path) -> dict[str, Any]:
    """The rows that are out, the quarantine by reason, and whether the books of every piece close."""
    bomb = path.name == "bomb.parquet"
    limits = {"piece": 2**25} if bomb else {"piece": 4096, "max_document": 2**20}
    settings = Input(path=str(path), id="doc", keep={"lang": "string"}, **limits)
    listing = list_shards(settings, "/nowhere/out")
    try:
        plan = plan_source(settings, listing, Pins(), {})
    except ConfigError as error:
        # Alone in its folder, a shard that lost a column is no input; among others its rows are set aside.
        return {"shard": path.name, "refused": str(error)}
    recipe = ReadRecipe(settings.text, settings.id, plan.keep, settings.max_document, settings.format)
    out: list[tuple[int, str]] = []
    rows = 0
    reasons: dict[str, int] = {}
    closed = True
    for span in plan.spans:
        for batch in read_span(Todo(span), recipe):
            batch.documents.validate(full=True)
            closed &= batch.rows_in == batch.documents.num_rows + batch.quarantine.num_rows
            rows += batch.documents.num_rows
            if not bomb:
                out += zip(batch.documents[ROW].to_pylist(), batch.documents[TEXT].to_pylist(), strict=True)
            for reason in batch.quarantine["reason"].to_pylist():
                reasons[reason] = reasons.get(reason, 0) + 1
    return {"shard": path.name, "out": out, "rows": rows, "quarantined": reasons, "closed": closed, "spans": len(plan.spans)}


def main() -> None:
    """One JSON line for each shard, written before the next is begun."""
    pa.set_cpu_count(1)
    paths = sorted(Path(sys.argv[1]).iterdir())
    for path in paths[int(sys.argv[2]) if len(sys.argv) > 2 else 0 :]:
        started = time.perf_counter()
        try:
            result = read(path)
        except Exception as error:  # noqa: BLE001 -- reported: nothing may be raised for what a shard holds
            result = {"shard": path.name, "raised": f"{type(error).__name__}: {error}"}
        print(json.dumps({**result, "peak": peak_bytes(), "seconds": round(time.perf_counter() - started, 3)}), flush=True)


if __name__ == "__main__":
    main()
