"""How many tokens go into one pack: as many as asked for, fewer where the device's memory does not hold them."""

from __future__ import annotations

_PATIENCE = 32
"""Packs that must go well before a smaller budget grows again."""
_SHARE = 0.8
"""Of the free memory, what packs may take: allocators waste some, and other processes may want some."""


class Budget:
    """Tokens of a pack. Out of memory halves them, and after 32 good packs they double again, up to what was asked for; where
    that was too early, the next wait is twice as long."""

    def __init__(self, asked: int) -> None:
        self.tokens = asked
        self._most = asked
        self._patience = _PATIENCE
        self._good = 0
        self._grown = False

    def fit(self, used: int, tokens: int, free: int) -> None:
        """Lower the budget, for good, to what `free` bytes hold, given that a pack of `tokens` tokens took `used` bytes."""
        if used > 0:
            self._most = min(self._most, max(1, int(_SHARE * free * tokens / used)))
            self.tokens = min(self.tokens, self._most)

    def exhausted(self, tokens: int) -> None:
        """A pack of `tokens` tokens did not fit."""
        self.tokens = max(1, min(self.tokens, tokens) // 2)
        self._good = 0
        if self._grown:
            self._patience *= 2
            self._grown = False

    def went_well(self) -> None:
        """One more pack fitted."""
        self._good += 1
        if self.tokens < self._most and self._good >= self._patience:
            self.tokens = min(2 * self.tokens, self._most)
            self._good = 0
            self._grown = True
