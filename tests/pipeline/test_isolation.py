"""Taking apart: exactly the bad rows are found, whatever they are and however many processes die of them; few do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.guard import Trouble
from pipeline.isolation import MOST_BAD, WAYS, Broken, take_apart


@dataclass
class Worker:
    """A process beside the worker: dies of rows in `deadly`, answers with an error for those in `raising`."""

    deadly: set[int]
    raising: set[int] = field(default_factory=set)
    strangers: int = 0
    """So many times it is killed from outside, at whatever it does alone."""
    fresh: bool = True
    deaths: int = 0
    done: list[int] = field(default_factory=list)
    alone_last: dict[int, bool] = field(default_factory=dict)
    """By first row of what was deadly: whether its process had done nothing else, the last time."""

    def run(self, part: range) -> list[int]:
        """The rows of `part`, or Trouble."""
        fresh, self.fresh = self.fresh, False
        if self.deadly & set(part):
            self.die()
            self.alone_last[part.start] = fresh
            raise Trouble("worker_crash", "killed by SIGSEGV")
        if len(part) == 1 and self.strangers:
            self.strangers -= 1
            self.die()
            raise Trouble("oom", "killed by SIGKILL", sure=False)
        if self.raising & set(part):
            raise Trouble("task_failed", "RuntimeError", died=False)
        self.done += part
        return list(part)

    def die(self) -> None:
        self.deaths += 1
        self.fresh = True

    def alone(self) -> bool:
        """Whether nothing was done by this process yet."""
        return self.fresh


@given(st.integers(1, 5000), st.data())
def test_exactly_the_bad_rows_are_found(rows: int, data: st.DataObject) -> None:
    some = st.sets(st.integers(0, rows - 1), max_size=4)
    worker = Worker(data.draw(some), data.draw(some))
    good, bad = take_apart(rows, worker.run, worker.alone)
    assert set(bad) == worker.deadly | worker.raising
    assert all(bad[row][0] == "worker_crash" and worker.alone_last[row] for row in worker.deadly)
    assert all(bad[row][0] == "task_failed" for row in worker.raising - worker.deadly)
    assert [row for start in sorted(good) for row in good[start]] == [row for row in range(rows) if row not in bad]
    assert sorted(worker.done) == [row for row in range(rows) if row not in bad]
    levels = math.ceil(math.log(rows, WAYS)) + 2  # the whole piece, and a row that was not alone once more
    assert worker.deaths <= levels * len(worker.deadly)


def test_a_good_piece_is_done_in_one_go() -> None:
    worker = Worker(set())
    assert take_apart(10_000, worker.run, worker.alone) == ({0: list(range(10_000))}, {})


def test_a_process_killed_by_a_stranger_condemns_no_row() -> None:
    worker = Worker({3}, strangers=1)
    good, bad = take_apart(20, worker.run, worker.alone)
    assert set(bad) == {3}
    assert len([row for part in good.values() for row in part]) == 19


def test_more_bad_rows_than_can_be_believed_are_none() -> None:
    rows = 1000
    worker = Worker(set(range(rows)))
    with pytest.raises(Broken, match=f"{MOST_BAD + 1} rows fail and 0 do not"):
        take_apart(rows, worker.run, worker.alone)
    few = Worker(set(range(MOST_BAD)))
    assert len(take_apart(MOST_BAD, few.run, few.alone)[1]) == MOST_BAD


def test_good_rows_are_known_before_bad_ones_are_counted() -> None:
    worker = Worker(set(range(100)))  # together, at the beginning
    assert len(take_apart(1000, worker.run, worker.alone)[1]) == 100


def test_a_piece_without_rows_cannot_blame_one() -> None:
    def run(_part: range) -> None:
        raise Trouble("worker_crash", "killed by SIGSEGV")

    with pytest.raises(Broken, match="without rows"):
        take_apart(0, run, lambda: True)
