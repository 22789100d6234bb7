"""The name in the config is the module: which heads and encoder backends there are, and the settings of a head."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from pydantic import BaseModel

import operators.heads


def head_config(kind: str) -> type[BaseModel]:
    """The Config class of head `kind`, whose module is `operators.heads.<kind>`; ValueError names the real modules."""
    check_module(operators.heads, kind)
    config: type[BaseModel] = importlib.import_module(f"operators.heads.{kind}").Config
    return config


def modules(package: ModuleType) -> list[str]:
    """Names of the modules in a package that a config may give."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def check_module(package: ModuleType, kind: str) -> None:
    """The name in the config is the module; ValueError names the real ones."""
    kinds = modules(package)
    if kind not in kinds:
        where = package.__name__.rpartition(".")[2]
        raise ValueError(f"{kind!r} is none of the {where}{did_you_mean(kind, kinds)}; there are: {', '.join(kinds)}")


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?` or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
