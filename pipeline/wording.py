"""Text of others in messages and logs: one line of printable characters, without secrets, never a document.

Names of shards and columns, and messages of libraries, come from whoever can write the input. They must not forge a line of a
log, steer a terminal, or carry a password out.
"""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from pipeline.errors import TidemillError

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/?#\s'\"]*)@")
_PARAMETER = re.compile(
    r"(?P<name>[?&][\w.-]*(?:key|secret|token|passw|pwd|credential|sig|auth)[\w.-]*)=(?P<value>[^&\s'\"]+)", re.IGNORECASE
)
_SECRET_NAME = re.compile(r"key|secret|token|passw|pwd|credential|connection_string|sas\b|cookie", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters; what is shorter is found in harmless text too."""
_LEFT_OUT = "***"


def printable(text: str) -> str:
    """`text` in one line: characters that are not printable, line ends and terminal controls among them, as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def message_lines(text: str) -> str:
    """`text` with printable lines only, all but the first indented, so that none can pass for a line of another's."""
    first, *rest = text.split("\n")
    return "\n".join([printable(first), *(f"  {printable(line.strip())}" for line in rest if line.strip())])


def without_secrets(text: str) -> str:
    """`text` without passwords in URLs, parameters named like secrets, and what the environment holds as one."""
    text = _USERINFO.sub(_keep_container, text)
    text = _PARAMETER.sub(lambda match: f"{match['name']}={_LEFT_OUT}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name) and not value.startswith("/"):
            text = text.replace(value, _LEFT_OUT)
    return text


def _keep_container(match: re.Match[str]) -> str:
    """abfs://container@account/ names a container before the @; anything with a colon there is a password."""
    if match["scheme"].lower() == "abfs" and ":" not in match["user"]:
        return match[0]
    return f"{match['scheme']}://{_LEFT_OUT}@"


def describe(error: BaseException) -> str:
    """What went wrong and where, in one line; the message only of errors that cannot quote a document."""
    if isinstance(error, (TidemillError, OSError)):
        first = (str(error).splitlines() or [""])[0]
        return printable(without_secrets(f"{type(error).__name__}: {first}"))
    return f"{type(error).__name__}{_at(error)}"


def frames(error: BaseException) -> list[str]:
    """Where the error and those behind it came from, as lines `file:line in function`; no message and no source text."""
    lines = []
    seen: BaseException | None = error
    while seen is not None:
        lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(seen.__traceback__)]
        lines.append(f"{type(seen).__name__}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return [printable(line) for line in lines]


def _at(error: BaseException) -> str:
    found = traceback.extract_tb(error.__traceback__)
    if not found:
        return ""
    frame = found[-1]
    return f" in {frame.name} ({Path(frame.filename).name}:{frame.lineno})"
