"""Whether a store really has create-only writes."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from pipeline.ledger.store import Exists, Store

_RACERS = 8


def check_create_only(store: Store) -> str | None:
    """Race threads for one key: None where exactly one wins and the key then stays closed, otherwise what went wrong.

    A store may ignore the condition instead of refusing it, as some S3 look-alikes do, so only a trial tells.
    """
    key = f"_probe/{uuid.uuid4().hex}"
    start = threading.Barrier(_RACERS)

    def race(racer: int) -> bool:
        start.wait()
        return _wins(store, key, str(racer).encode())

    with ThreadPoolExecutor(_RACERS) as pool:
        winners = [racer for racer, won in enumerate(pool.map(race, range(_RACERS))) if won]
    late = _wins(store, key, b"late")
    kept = store.get(key) if winners else b""
    store.delete(key)
    if len(winners) != 1:
        return f"{len(winners)} of {_RACERS} writers created the same key at once; expected exactly one"
    if late or kept != str(winners[0]).encode():
        return "a key that existed was overwritten by a create-only write"
    return None


def _wins(store: Store, key: str, data: bytes) -> bool:
    try:
        store.create(key, data)
    except Exists:
        return False
    return True
