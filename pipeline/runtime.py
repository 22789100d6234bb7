"""What the settings of `runtime` become in a recipe, where they are left to us."""

from __future__ import annotations

from collections.abc import Iterable

from operators.devices import Device, default_token_budget, resolve_compile
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.ledger.pieces import Todo
from pipeline.limits import Limits
from pipeline.recipe import Tolerance

_GUARD_SAMPLE = 32
"""Documents that are compared with the reference where `precision: auto` may lose something."""


_PATIENCE_SECONDS = 1800.0
"""Without a settled piece, at least; models are loaded and machines started in it."""
_SLOWEST_CPU, _SLOWEST_DEVICE = 2**10, 2**16
"""Bytes of text that a worker encodes in a second, at the very least."""


def patience(config: Config, device: str, todos: Iterable[Todo]) -> float | None:
    """Seconds without a settled piece after which a run is stuck; None: it never is."""
    asked = config.runtime.stuck_after
    if asked == "never":
        return None
    if asked != "auto":
        return float(asked)
    sizes = (t.span.weight if t.span.rows is not None else min(t.span.weight, 2 * t.span.piece_bytes) for t in todos)
    slowest = _SLOWEST_CPU if device == "cpu" else _SLOWEST_DEVICE
    return max(_PATIENCE_SECONDS, max(sizes, default=0) / slowest, limits(config).taking_apart())


def token_budget(config: Config, device: Device) -> int:
    """Tokens in one pack."""
    asked = config.runtime.tokens_per_pack
    return default_token_budget(device.kind) if asked == "auto" else asked


def compiles(config: Config, device: Device, text_bytes: int) -> bool:
    """Whether encoders compile; how much work each has is estimated at four bytes of text for a token. ConfigError where not."""
    packs = text_bytes / 4 / token_budget(config, device) / device.count
    try:
        return resolve_compile(config.runtime.compile, config.runtime.backend, device.kind, packs)
    except ValueError as error:
        raise ConfigError(str(error), field="runtime.compile") from error


def parity_sample(config: Config, precision: str) -> int:
    """Documents that are compared with the reference."""
    return max(config.runtime.parity_sample, _GUARD_SAMPLE if _guarded(config, precision) else 0)


def tolerance(config: Config, precision: str) -> Tolerance:
    """How far they may be from it."""
    runtime = config.runtime
    default = 0.9999 if precision == "fp32" else 0.99
    similarity = default if runtime.parity_similarity == "auto" else runtime.parity_similarity
    if runtime.precision_similarity != "auto" and _guarded(config, precision):
        similarity = max(similarity, runtime.precision_similarity)
    return Tolerance(similarity, runtime.parity_apart)


def limits(config: Config) -> Limits:
    """What a piece may take before it is called a loop or a runaway."""
    seconds, memory = config.runtime.piece_timeout, config.runtime.worker_memory
    return Limits(None if seconds == "auto" else seconds, None if memory == "auto" else int(memory))


def _guarded(config: Config, precision: str) -> bool:
    """Whether `precision: auto` gave up exactness for a similarity that the config states, which is then to be checked."""
    runtime = config.runtime
    return runtime.precision == "auto" and runtime.precision_similarity != "auto" and precision != "fp32"
