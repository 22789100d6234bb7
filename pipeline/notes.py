"""A plan in words: what a run would do, and what deserves a second look before it does."""

from __future__ import annotations

from typing import Any

from pipeline.planning import Plan
from pipeline.wording import printable


def describe(plan: Plan) -> list[str]:
    """The plan in a few lines."""
    shards, spans = len(plan.listing.shards), len(plan.source.spans)
    return [
        f"{shards} shards, {plan.source.text_bytes / 2**20:.1f} MiB of text in {spans} spans; {len(plan.todos)} to do",
        f"device {plan.device.kind} ({plan.reasons['device']}), precision {plan.precision} ({plan.reasons['precision']})",
        *notes(plan),
    ]


def notes(plan: Plan) -> list[str]:
    """What a run would do beyond encoding what is new, and what was left out."""
    found = [note for model in plan.models.values() for note in model.notes]
    if plan.listing.ignored:
        found.append(f"{plan.listing.ignored} files were left out: hidden, starting with '_', links, or with an unknown suffix")
    if plan.base and changes(plan):
        rows = plan.base.totals["rows_in"]
        again = f"all {rows} rows are encoded again" if plan.todos else "all is recorded and published without encoding"
        found.append(f"another generation than version {plan.base.version} of the table: {again} ({'; '.join(changes(plan))})")
    if plan.base and plan.base.restores is not None:
        found.append(
            f"version {plan.base.version} is a rollback to version {plan.base.restores}: this run publishes the "
            "input as it is now, with all that later versions recorded"
        )
    gone = removed(plan)
    if gone:
        drop = changes(plan) or plan.config.output.removed == "drop"
        fate = "leave the table (older versions keep them)" if drop else "stay in the table"
        found.append(f"{len(gone)} shards that left the input {fate}, for example {printable(gone[0])}")
    return found


def removed(plan: Plan) -> list[str]:
    """Shards in the table that left the input."""
    return sorted({r.shard for r in plan.base_records} - {s.key for s in plan.listing.shards})


def changes(plan: Plan) -> list[str]:
    """What makes the plan's generation another than the table's: lines `name: before -> now`."""
    if plan.base is None or plan.base.generation == plan.generation:
        return []
    before, now = _flatten(plan.base.fingerprint), _flatten(plan.fingerprint)
    return [f"{k}: {before.get(k)} -> {now.get(k)}" for k in sorted({*before, *now}) if before.get(k) != now.get(k)]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
