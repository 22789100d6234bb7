"""The most memory that this process has held."""

from __future__ import annotations

import re
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident size so far, in bytes (Linux).

    Not `getrusage`: its `ru_maxrss` starts at what the parent held when it forked, and `exec` keeps it.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
