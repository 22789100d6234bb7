"""A look at the demo's committed table: its books, and the nearest neighbours of three English documents.

python -m demo.neighbours [CONFIG] [KEY.PATH=VALUE ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipeline import open_output
from pipeline.config import load

EXAMPLES = ("violin", "loch", "Pride and Prejudice, chapter 1")
NEIGHBOURS = 3


def main() -> None:
    """Print the summary on standard output."""
    arguments = sys.argv[1:] or ["configs/demo.yaml"]
    path = load(arguments[0], arguments[1:]).output.path
    books = status(path)
    rows = open_output(path).to_table(columns=["title", "lang", "n_tokens", "n_segments", "vector"])
    console = Console(highlight=False)
    console.print()
    console.print(summary(path, books, rows))
    console.print(neighbours(rows.filter(pc.field("lang") == "en")))


def status(path: str) -> dict[str, Any]:
    """What `tidemill status --json` says of the table at `path`."""
    command = [sys.executable, "-m", "jobs", "status", path, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def summary(path: str, books: dict[str, Any], rows: pa.Table) -> Table:
    """The books and the size of the table."""
    reasons = books["quarantined"]
    aside = sum(reasons.values())
    longest = int(np.argmax(rows["n_tokens"]))
    table = Table(title="The committed table", title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column()
    table.add_row("where", f"{path}, version {books['version']}")
    table.add_row(
        "books", f"{books['rows_in']} rows in = {books['rows_out']} out + {aside} quarantined + {books['filtered']} filtered"
    )
    table.add_row("quarantine", ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "empty")
    table.add_row("read", f"{pc.sum(rows['n_tokens']).as_py():,} tokens in {pc.sum(rows['n_segments']).as_py():,} windows")
    table.add_row("speed", speed(path, books["run_id"]))
    table.add_row(
        "longest",
        f"{rows['title'][longest]}: {rows['n_tokens'][longest].as_py():,} tokens, every one read, "
        f"in {rows['n_segments'][longest]} windows and one vector",
    )
    return table


def speed(path: str, run_id: str) -> str:
    """From the report of the run that published the table."""
    report = json.loads((Path(path) / "_runs" / run_id / "report.json").read_text(encoding="utf-8"))
    return f"{report['tokens_per_second']:,.0f} tokens/s, start-up of the engine included"


def neighbours(rows: pa.Table) -> Table:
    """The nearest documents of each example, by cosine: the vectors have unit length."""
    titles = rows["title"].to_pylist()
    vectors = pc.list_flatten(rows["vector"]).to_numpy().reshape(rows.num_rows, -1)
    table = Table(title="\nNearest neighbours, by cosine", title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="cyan")
    for example in EXAMPLES:
        here = titles.index(example)
        cosines = vectors @ vectors[here]
        nearest = [i for i in np.argsort(-cosines) if i != here][:NEIGHBOURS]
        table.add_row(example, "\n".join(f"{cosines[i]:.2f}  {titles[i]}" for i in nearest))
    return table


if __name__ == "__main__":
    main()
