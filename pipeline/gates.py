"""Quality gates: what stands between closed books and a new version.

Each looks at the pieces of the run and says in words what is wrong; what any of them finds holds the run back. Pieces that
stood in any version so far were accepted, and are not held again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.drift import Candidate, describe, find_drift
from pipeline.errors import Held
from pipeline.holding import hold, published_pieces
from pipeline.ledger.records import Record
from pipeline.parity import findings
from pipeline.planning import Plan, draft


@dataclass(frozen=True)
class _Verdict:
    """What one gate found."""

    found: dict[str, Any]
    """For the report."""
    wrong: tuple[str, ...] = ()
    """Reasons to hold the run back."""
    advice: str = ""


def check_gates(plan: Plan, closed: Sequence[Record]) -> dict[str, Any]:
    """What the drift gate found, for the report. Held where a gate says no, and how to publish the run all the same."""
    verdicts = {name: gate(plan, closed) for name, gate in _GATES.items()}
    if any(v.wrong for v in verdicts.values()):
        accepted = published_pieces(plan.recipe.store, plan.base, plan.generation)
        held = {name: gate(plan, [r for r in closed if r.piece not in accepted]) for name, gate in _GATES.items()}
        if any(v.wrong for v in held.values()):
            _hold(plan, closed, held)
    return verdicts["drift"].found


def _hold(plan: Plan, closed: Sequence[Record], verdicts: dict[str, _Verdict]) -> None:
    why = "; ".join(reason for v in verdicts.values() for reason in v.wrong)
    advice = "".join(f" {v.advice}" for v in verdicts.values() if v.wrong and v.advice)
    run_id, output = plan.recipe.run_id, plan.config.output
    hold(
        plan.recipe.store,
        draft(plan, list(closed)),
        has_ids=plan.config.input.id is not None,
        single_writer=output.single_writer,
        why=why,
        findings={name: v.found for name, v in verdicts.items()},
    )
    raise Held(
        f"{why}.{advice} Nothing is published; `tidemill publish {output.path} --accept {run_id}` publishes what is recorded",
        run_id,
    )


def _parity(plan: Plan, records: Sequence[Record]) -> _Verdict:
    """Documents that the reference encoded again, and that came out differently."""
    tolerance, found = plan.recipe.tolerance, findings(records)
    wrong = tuple(
        f"task {task}: {f.apart} of {f.documents} documents are apart from the reference (mean similarity {f.similarity:.6f})"
        for task, f in found.items()
        if not f.within(tolerance)
    )
    advice = f"A share of {tolerance.apart} may be apart; how near each must be was settled when it was encoded."
    return _Verdict({task: asdict(f) for task, f in found.items()}, wrong, advice)


def _drift(plan: Plan, records: Sequence[Record]) -> _Verdict:
    """Statistics of what is new that are unlike those of what the last versions added."""
    candidate = Candidate(plan.generation, plan.fingerprint, plan.recipe.schema, records)
    found = find_drift(plan.recipe.store, plan.base, candidate, plan.config.quality)
    wrong = tuple(describe(f) for f in found["findings"]) if plan.config.quality.drift == "hold" else ()
    return _Verdict(found, wrong)


_GATES: dict[str, Callable[[Plan, Sequence[Record]], _Verdict]] = {"parity": _parity, "drift": _drift}
