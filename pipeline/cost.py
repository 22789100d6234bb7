"""What a run would cost, by the speed that a run of the same table had: hours, device-hours, price, bytes written."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipeline.ledger.publish import commit_schema, read_commit
from pipeline.planning import Plan

_LOOKED_AT = 10
"""Versions whose reports are looked at, back from the newest, until one of a run that has encoded something."""


def cost(plan: Plan, rows: int, tokens: int) -> dict[str, Any]:
    """The cost of encoding `rows` documents of `tokens` tokens (over all passes). None where nothing was measured yet.

    `price` is in the currency of `runtime.price_per_hour`; the rate is of all workers together, and of another generation's
    models where `rate_generation` is not the plan's."""
    measured = _rate(plan) or {}
    rate, workers = measured.get("rate_tokens_per_second"), measured.get("rate_workers")
    hours = tokens / rate / 3600 if rate else None
    price_per_hour = plan.config.runtime.price_per_hour
    return {
        "rows": rows,
        "tokens": tokens,
        "written_bytes": int(rows * _row_bytes(plan)),
        "hours": _rounded(hours),
        "device_hours": _rounded(hours * workers if hours is not None and workers else None),
        "price": _rounded(hours * price_per_hour if hours is not None and price_per_hour is not None else None),
        **measured,
    }


def _rate(plan: Plan) -> dict[str, Any] | None:
    """Tokens a second and workers of the newest run of this table that has encoded something."""
    newest = plan.base.version if plan.base else 0
    for version in range(newest, max(0, newest - _LOOKED_AT), -1):
        try:
            commit = plan.base if plan.base and version == newest else read_commit(plan.recipe.store, version)
            report = json.loads(plan.recipe.store.get(f"_runs/{commit.run_id}/report.json"))
            rate, workers = float(report["tokens_per_second"]), int(report["statistics"].get("workers", 0))
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # removed as too old, or of an older kind
            continue
        if rate > 0:
            return {
                "rate_tokens_per_second": rate,
                "rate_workers": workers or None,
                "rate_run_id": commit.run_id,
                "rate_generation": commit.generation,
            }
    return None


def _row_bytes(plan: Plan) -> float:
    """Bytes of a row in a data file: as the table's rows have, and what columns of fixed width that differ take; without a
    table only those."""
    width = _width(plan.recipe.schema)
    if plan.base is None or not plan.base.totals["rows_out"]:
        return width
    measured = float(plan.base.totals["bytes"]) / int(plan.base.totals["rows_out"])
    return max(width, measured + width - _width(commit_schema(plan.base)))


def _width(schema: pa.Schema) -> float:
    """Bytes of a row's vectors, which is where the bytes are."""
    vectors = [f.type for f in schema if pa.types.is_fixed_size_list(f.type)]
    return float(sum(kind.list_size * kind.value_type.bit_width / 8 for kind in vectors))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
