"""Vacuum of a table that a user names: the store is opened and its errors are put in words."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ConfigError, TidemillError
from pipeline.ledger.vacuum import Found, Rules, vacuum
from pipeline.table import open_table


def vacuum_table(path: str, storage_options: dict[str, Any], rules: Rules, *, act: bool) -> Found:
    """What goes from the table at `path`; removed only if `act`.

    ConfigError where the store cannot be read or refuses; what was not removed then is found again by the next vacuum.
    """
    store, _ = open_table(path, storage_options)
    try:
        return vacuum(store, rules, act=act)
    except TidemillError:
        raise
    except Exception as error:  # each store's library raises its own
        raise ConfigError(
            f"the store refused: {type(error).__name__}; check that you may list, write and delete there, then vacuum again",
            field="output",
        ) from error
