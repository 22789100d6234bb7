"""What all benchmarks share: measuring a command with its children, this machine and its versions, and tables in Markdown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
UNDISTURBED = 0.875
"""Share of the cores that must have been free of other work: 1.75 of 2."""

_LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "ray",
    "pyarrow",
    "numpy",
    "onnxruntime",
    "openvino",
    "nncf",
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


class Failed(RuntimeError):
    """What was to be measured did not run."""


@dataclass(frozen=True)
class Usage:
    """What one run took. Shared memory pages, such as those of an object store, are not counted."""

    wall: float
    """Seconds."""
    cpu: float
    """CPU seconds of the measured processes."""
    others: float
    """CPU seconds of all else on this machine meanwhile, time stolen by its host included."""
    peak_bytes: int = 0
    ready: float | None = None
    """Seconds until it printed `ready`; None where it did not."""

    @property
    def cores(self) -> float:
        """Cores that it used, on average."""
        return self.cpu / self.wall

    @property
    def free(self) -> float:
        """Cores that it could have used: those that others did not."""
        return max(0.0, CORES - self.others / self.wall)

    @property
    def disturbed(self) -> bool:
        """Whether others took so much that the figures are in doubt."""
        return self.free < UNDISTURBED * CORES


def busy_seconds() -> float:
    """CPU seconds that all work on this machine has taken since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


class Watcher(threading.Thread):
    """Samples CPU time and resident sets of a process and all its descendants, ten times a second.

    What a process does in its last tenth of a second is missed."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._cpu: dict[tuple[int, float], float] = {}
        self.peak_bytes = 0

    @property
    def cpu(self) -> float:
        """CPU seconds of all of them, those that have ended included."""
        return sum(self._cpu.values())

    def run(self) -> None:
        """Sample until `stop`, or until the process ends."""
        while not self._over.wait(0.1):
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak_bytes = max(self.peak_bytes, sum(map(self._sample, family)))

    def _sample(self, process: psutil.Process) -> int:
        """Bytes of its resident set, less shared pages."""
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                self._cpu[process.pid, process.create_time()] = times.user + times.system
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0
        return int(memory.rss - memory.shared)

    def stop(self) -> None:
        """End sampling."""
        self._over.set()
        self.join()


def environment() -> dict[str, str]:
    """For measured commands: no network, no limit of threads that they did not set themselves."""
    kept = {name: value for name, value in os.environ.items() if not re.fullmatch(r"(OMP|MKL|OPENBLAS)_NUM_THREADS", name)}
    return {**kept, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def run_command(command: Sequence[str], log: Path, extra: Mapping[str, str] | None = None) -> tuple[Usage, str]:
    """Run `command` in the repository's root, and return what it printed too; standard error goes to `log`. `extra`: more of
    its environment.

    Failed, with the end of the log, where its code is not 0."""
    busy, started = busy_seconds(), time.perf_counter()
    ready: float | None = None
    printed = []
    settings = {**environment(), **(extra or {})}
    with (
        log.open("w") as errors,
        subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        watcher = Watcher(process.pid)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if line == "ready\n":
                ready = time.perf_counter() - started
        code = process.wait()
    wall = time.perf_counter() - started
    watcher.stop()
    others = busy_seconds() - busy - watcher.cpu
    if code:
        raise Failed(f"exit {code}: {' / '.join(log.read_text().strip().splitlines()[-3:])[-300:]}")
    return Usage(wall, watcher.cpu, max(0.0, others), watcher.peak_bytes, ready), "".join(printed)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures. None is shown as a dash."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 0) -> str | None:
    """With `digits` after the point and thousands apart."""
    return None if value is None else f"{value:,.{digits}f}"


def runs(values: Sequence[float], digits: int = 0) -> str:
    """All runs, in the order in which they were made."""
    return " ".join(f"{value:.{digits}f}" for value in values)


def mebibytes(values: Sequence[int]) -> str | None:
    """The largest, in MiB; None where nothing was measured."""
    return number(max(values) / 2**20) if any(values) else None


def shares(usages: Sequence[Usage]) -> tuple[str, str]:
    """Cores used, and cores that were free to use, in the median run; `!` marks a median that was disturbed."""
    free = median(usage.free for usage in usages)
    mark = "" if free >= UNDISTURBED * CORES else " !"
    return f"{median(usage.cores for usage in usages):.2f}", f"{free:.2f}{mark}"


def header(title: str, command: Sequence[str]) -> str:
    """Title, command, machine, versions, commit and date."""
    versions = ", ".join(f"{name} {version}" for name in _LIBRARIES if (version := _version(name)))
    facts = {
        "command": f"`python -m {shlex.join(command)}`",
        "machine": machine(),
        "software": f"Python {platform.python_version()}, {versions}",
        "commit": commit(),
        "date": date(),
    }
    return f"# {title}\n\n" + "\n".join(f"* {name}: {value}" for name, value in facts.items())


def machine() -> str:
    """The CPU as lscpu names it, its family and instruction sets; cores that may be used; memory."""
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=True).stdout
    fields = dict(re.findall(r"^([^:\n]+):\s+(.*)$", listed, re.MULTILINE))
    flags = [flag for flag in _FLAGS if flag in fields.get("Flags", "").split()]
    family = f"family {fields.get('CPU family', '?')}, model {fields.get('Model', '?')}"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    virtual = f", virtual ({fields['Hypervisor vendor']})" if "Hypervisor vendor" in fields else ""
    return f"{fields.get('Model name', platform.machine())} ({family}; {', '.join(flags)}), {CORES} cores{virtual}, {memory}"


def date() -> str:
    """To the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """The checked out commit, and whether files differ from it; `unknown` without git."""
    if shutil.which("git") is None:
        return "unknown"
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True).stdout
    return found.stdout.strip() + (" with changes" if changed else "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(path: Path, parts: Sequence[str]) -> None:
    """Write the parts as one Markdown file, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")
    print(f"written: {path}", file=sys.stderr)
