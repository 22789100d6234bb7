"""Every error a user can meet, each with the exit code of the public contract.

    TidemillError           1  an error that is ours
      ConfigError           2  the config or an input path is wrong; nothing was started
      Incomplete            3  pieces are missing or the books do not close; nothing was published
        Stuck               3  nothing came out for too long
      Held                  4  a quality gate holds the result back
      Fenced                5  a newer generation was committed meanwhile
      Terminated          143  SIGTERM; what was in flight is recorded, the same command goes on

A message says what is wrong, where (field path, shard, row), the value seen and what to do. It never carries
document text or secrets.
"""

from __future__ import annotations


class TidemillError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the process's exit code."""

    exit_code = 1


class ConfigError(TidemillError):
    """Wrong config, wrong model or wrong input path, found before any worker starts."""

    exit_code = 2

    def __init__(self, message: str, *, field: str | None = None) -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message)


class Incomplete(TidemillError):
    """The run ended without a record for every piece, or the books do not close."""

    exit_code = 3


class Stuck(Incomplete):
    """Nothing came out for too long, and the run was given up; threads may hang in it."""


class Held(TidemillError):
    """A quality gate holds the result back; it can be published later without recomputing."""

    exit_code = 4

    def __init__(self, message: str, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(message)


class Fenced(TidemillError):
    """Another generation was committed since this run read the table."""

    exit_code = 5


class Terminated(TidemillError):
    """SIGTERM was received and the writes in flight were finished."""

    exit_code = 143
