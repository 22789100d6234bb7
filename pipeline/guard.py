"""A process beside the worker that does one thing at a time, within limits: it may die, and the worker does not.

It is a fresh interpreter (`pipeline.child`) and no fork, since threads and devices do not survive one. Requests and answers
are a JSON header and an Arrow IPC stream over a socket, so nothing that a dying process leaves behind is unpickled.
"""

from __future__ import annotations

import json
import os
import pickle  # written here, and read by the process that is started here  # nosec B403
import signal
import subprocess  # of this interpreter alone  # nosec B404
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pyarrow as pa

from pipeline.recipe import Recipe

_EVERY_SECONDS = 0.02
_START_SECONDS = 600.0
"""For the interpreter and its imports."""
_STDERR = 2


class Trouble(Exception):
    """A request was not answered: `reason` is one of the quarantine's, `detail` says what was seen, without text.

    `died`: the process is gone. `sure`: no stranger can have ended it."""

    def __init__(self, reason: str, detail: str, *, died: bool = True, sure: bool = True) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.died = died
        self.sure = sure


class Guard:
    """Starts the process when it is first needed, and another one whenever it died. `memory` gives its limit in bytes."""

    def __init__(self, recipe: Recipe, threads: int, memory: Callable[[], int]) -> None:
        self._job = pickle.dumps((recipe, threads))
        self._memory = memory
        self._most = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._requests = 0

    @property
    def untouched(self) -> bool:
        """Whether the next request is the first one that the process answers, checks aside."""
        return self._requests == 0

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, if there is none. Raises Trouble where it does not come up."""
        if self.running:
            return
        self.end()
        self._most = self._memory()  # before the process takes some of what is free
        ours, theirs = Pipe()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "pipeline.child", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(  # a list of our own, no shell  # nosec B603
                command,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                pass_fds=(theirs.fileno(),),
            )
        self._connection = ours
        self._requests = 0
        self._wait(_START_SECONDS)  # it has nothing to say but that it listens
        try:
            ours.send_bytes(self._job)
        except OSError:
            raise self._dead() from None

    def call(self, kind: str, table: pa.Table, seconds: float, *, counts: bool = True) -> pa.Table:
        """The answer to one request. Raises Trouble where there is none within `seconds`, or it is an error.

        `counts`: whether the process is `untouched` no longer."""
        self.start()
        assert self._connection is not None
        self._requests += counts
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        try:
            self._connection.send_bytes(json.dumps({"kind": kind, "seconds": seconds}).encode())
            self._connection.send_bytes(memoryview(sink.getvalue()))
        except OSError:
            raise self._dead() from None
        header = self._wait(seconds)
        if "error" in header:
            raise Trouble(header["reason"], header["error"], died=False)
        try:
            return pa.ipc.open_stream(self._connection.recv_bytes()).read_all()
        except (EOFError, OSError):
            raise self._dead() from None

    def end(self) -> None:
        """End the process, whatever it is at."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None
        self._requests = 0

    def _wait(self, seconds: float) -> dict[str, Any]:
        """The header of the next answer, while time and memory are watched."""
        assert self._connection is not None
        assert self._process is not None
        watched, most = psutil.Process(self._process.pid), self._most
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(_EVERY_SECONDS):
                if time.monotonic() > deadline:
                    raise self._ended("timeout", f"no end within {seconds:.0f} s")  # noqa: TRY301 -- ended in every other case too
                with suppress(psutil.Error):
                    if watched.memory_info().rss > most:
                        raise self._ended("oom", f"more than {most >> 20} MiB of memory")  # noqa: TRY301
            header: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._dead() from None
        except BaseException:
            self.end()
            raise
        return header

    def _ended(self, reason: str, detail: str) -> Trouble:
        self.end()
        return Trouble(reason, detail)

    def _dead(self) -> Trouble:
        """What the process died of; it has closed its end of the connection."""
        assert self._process is not None
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            code = 0
        self.end()
        if code == -signal.SIGKILL:  # not by us: the kernel, or a stranger
            return Trouble("oom", "killed by SIGKILL, as the kernel does when memory runs out", sure=False)
        what = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Trouble("worker_crash", what)
