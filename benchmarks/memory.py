"""Peak memory of every process of a Tidemill run: one document of five million tokens, and one Parquet row group of 2 GB.

    python -m benchmarks.memory long-document [--engine ray] [--words 1000000]
    python -m benchmarks.memory wide-row-group [--engine ray] [--gigabytes 2]

Both make their input in a temporary folder, run the job as a user would, and print one JSON object: the largest resident
set of any process (bytes), which process it was, the rows of the closed books, and whether the limit held.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer
import yaml

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
app = typer.Typer(add_completion=False)
Engine = Annotated[str, typer.Option(help="local or ray")]


class Watcher(threading.Thread):
    """Samples the resident set (less shared pages) of a process and its children, ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self.peak = 0
        self.who = ""

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._over.wait(0.1):
            try:
                family = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    memory = process.memory_info()
                    resident = memory.rss - memory.shared
                    if resident > self.peak:
                        self.peak, self.who = resident, " ".join(process.cmdline())[:80]
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue

    def stop(self) -> None:
        """End sampling."""
        self._over.set()


def measure(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the job and return its report with the peak memory."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jobs", "run", str(path), "--json"], cwd=ROOT, stdout=subprocess.PIPE)
    watcher = Watcher(process.pid)
    watcher.start()
    stdout, _ = process.communicate()
    watcher.stop()
    if process.returncode:
        raise typer.Exit(process.returncode)
    report = json.loads(stdout)
    books, statistics = report["books"], report["statistics"]
    return {
        "peak_bytes": watcher.peak,
        "peak_gib": round(watcher.peak / GIB, 2),
        "process": watcher.who,
        "seconds": round(time.perf_counter() - started, 1),
        "pieces": report["pieces"],
        "rows_in": books["rows_in"],
        "rows_out": books["rows_out"],
        "tokens": report["tokens"],
        "statistics": statistics,
    }


def job(folder: Path, engine: str, model: Path, **runtime: Any) -> dict[str, Any]:
    """A plain embedding job over `folder/in`."""
    return {
        "input": {"path": str(folder / "in")},
        "tasks": {"vector": {"head": "embedding", "model": str(model)}},
        "output": {"path": str(folder / "out")},
        "runtime": {"engine": engine, "device": "cpu", **runtime},
    }


def finish(figures: dict[str, Any], limit: int) -> None:
    """Print the figures; exit 1 where the limit did not hold."""
    figures |= {"limit_gib": limit / GIB, "held": figures["peak_bytes"] < limit}
    typer.echo(json.dumps(figures))
    raise typer.Exit(0 if figures["held"] else 1)


@app.command()
def long_document(engine: Engine = "ray", words: int = 1_000_000) -> None:
    """One document of WORDS words, about five tokens each for a seeded tiny model; every process must stay under 4 GiB."""
    from tests.tiny import tiny_sentence_transformer

    rng = random.Random(0)
    vocabulary = ["river", "mountain", "quiet", "engine", "letter", "window", "garden", "silver", "morning", "answer"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        text = " ".join(rng.choices(vocabulary, k=words))
        (folder / "in" / "long.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "a short one"}) + "\n")
        model = tiny_sentence_transformer(folder / "model", max_seq_length=128)
        finish(measure(job(folder, engine, model), folder), 4 * GIB)


@app.command()
def wide_row_group(engine: Engine = "ray", gigabytes: float = 2.0, rows: int = 200_000) -> None:
    """ROWS short texts in one row group of GIGABYTES, most of it a column that is not read; the limit is 2 GiB."""
    from tests.tiny import tiny_sentence_transformer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        _write_wide(folder / "in" / "wide.parquet", int(gigabytes * 1e9), rows)
        model = tiny_sentence_transformer(folder / "model", max_seq_length=32)
        figures = measure(job(folder, engine, model), folder)
        size = (folder / "in" / "wide.parquet").stat().st_size
        finish(
            {**figures, "file_bytes": size, "row_groups": pq.ParquetFile(folder / "in" / "wide.parquet").num_row_groups}, 2 * GIB
        )


def _write_wide(path: Path, size: int, rows: int) -> None:
    """Random bytes do not compress, so the file is as large as it says."""
    per_row = size // rows
    noise = pa.py_buffer(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    blobs = pa.FixedSizeBinaryArray.from_buffers(pa.binary(per_row), rows, [None, noise])
    table = pa.table({"text": pa.array([f"short text number {i}" for i in range(rows)]), "payload": blobs})
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)


if __name__ == "__main__":
    app()
