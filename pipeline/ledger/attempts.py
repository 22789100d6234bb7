"""Attempts: a create-only marker for each time that a piece is begun.

A row that kills its worker leaves no word of it. But the markers of its piece stay, and a piece that was begun before and has
no record all the same is handled with care (`pipeline.isolation`). A marker is a hint and no part of the books: whatever
happens to it, no row is lost or doubled.
"""

from __future__ import annotations

import json

from pipeline.ledger.store import Exists, Store, Unknown

MOST = 8
"""Attempts that are told apart; all further ones count as this."""


def begin(store: Store, generation: str, piece: str, run_id: str, stage: str = "") -> int:
    """Note that a piece is begun; returns how many times it was begun before.

    `stage` names markers of their own, for workers that take a piece over from others and may die of it by themselves."""
    for number in range(MOST):
        try:
            store.create(attempt_key(generation, piece, number, stage), json.dumps({"run_id": run_id}).encode())
        except Exists:
            continue
        except Unknown:  # there or not: the piece is begun
            return number
        return number
    return MOST


def attempt_key(generation: str, piece: str, number: int, stage: str = "") -> str:
    """Where the marker of one attempt lives."""
    return f"_attempts/{generation}/{piece}-{stage}{number}.json"
