"""The long mode of the simulator: `python -m tests.pipeline.ledger.interleave --interleavings 200000 --processes 2`.

Ends with the seed that broke a promise, if one does. 200,000 interleavings take about 80 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest

from pipeline.ledger import publish
from tests.pipeline.ledger.scenarios import HISTORIES
from tests.pipeline.ledger.tally import count

_CHUNK = 20


def play(seeds: range) -> int:
    """Every kind of history for each seed; returns how many interleavings that was."""
    tried = 0
    with decoded_once():
        for seed in seeds:
            for history, interleavings in HISTORIES:
                try:
                    history(seed)
                except Exception as error:
                    raise AssertionError(f"{history.__name__}({seed}): {error!r}") from error
                tried += interleavings
    return tried


@contextmanager
def decoded_once() -> Iterator[None]:
    """Half of the time goes into decoding the same manifests again and again; their bytes are still asked for each time."""
    with pytest.MonkeyPatch.context() as patch:
        decode = lru_cache(maxsize=64)(publish.decode_manifest)
        patch.setattr(publish, "decode_manifest", lambda data, key: list(decode(data, key)))
        yield


def _chunks(first: int, seeds: int) -> Iterator[range]:
    for start in range(first, first + seeds, _CHUNK):
        yield range(start, min(start + _CHUNK, first + seeds))


def main() -> None:
    """Play, and print what was tried as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interleavings", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--first-seed", type=int, default=secrets.randbelow(10**9), help="to repeat a run; random otherwise")
    arguments = parser.parse_args()
    seeds = -(-arguments.interleavings // sum(n for _, n in HISTORIES))
    began = time.monotonic()
    with multiprocessing.Pool(arguments.processes) as pool:
        tried = sum(pool.imap_unordered(play, _chunks(arguments.first_seed, seeds)))
    count("long", interleavings=tried)
    print(json.dumps({"interleavings": tried, "first_seed": arguments.first_seed, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
