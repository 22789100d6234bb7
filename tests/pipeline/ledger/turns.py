"""Actors that take turns at each request, so that a seed stands for one interleaving."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random


class Crash(BaseException):
    """The process is killed at this point."""


class Turns:
    """Exactly one actor runs between two requests; `rng` says who is next."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._back = threading.Semaphore(0)
        self._actors: dict[str, tuple[threading.Semaphore, Callable[[], object]]] = {}
        self._errors: list[BaseException] = []

    def add(self, name: str, act: Callable[[Callable[[], None]], object]) -> None:
        """`act` is given the function to call at each of its requests."""
        mine = threading.Semaphore(0)

        def turn() -> None:
            self._back.release()
            mine.acquire()

        self._actors[name] = (mine, lambda: act(turn))

    def run(self) -> None:
        """Run all actors to their ends; raises the first error of any, but not Crash."""
        threads = [threading.Thread(target=self._live, args=(name,)) for name in self._actors]
        for thread in threads:
            thread.start()
        while self._actors:
            mine, _ = self._actors[self._rng.choice(sorted(self._actors))]
            mine.release()
            self._back.acquire()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _live(self, name: str) -> None:
        mine, act = self._actors[name]
        mine.acquire()
        try:
            act()
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 -- raised again by run()
            self._errors.append(error)
        finally:
            del self._actors[name]
            self._back.release()
