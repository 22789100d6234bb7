"""Heads of Ray as processes: started with `ray start`, waited for, and ended with all that they started."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def running_head(log: Path, env: dict[str, str], answers: int, **options: int | str) -> Iterator[None]:
    """`ray start --head` with `options`, up once port `answers` is open; it prints to `log`."""
    # Ray's sockets live below its folder and their paths are limited to 107 bytes.
    folder = Path("/tmp") / f"tm{os.getpid()}-{answers}"
    given = [f"--{name.replace('_', '-')}={value}" for name, value in {**options, "temp_dir": str(folder)}.items()]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats", *given]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_until_up(process, answers, log)
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        for lingering in alive:
            lingering.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.3)
