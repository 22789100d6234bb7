"""Mutated shards: every piece is fully out or in quarantine with a reason, no process crashes, and memory stays bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import flow, open_output
from pipeline.config import load
from tests.chaos.mutate import Original, mutated, originals
from tests.chaos.profile import scaled, tally
from tests.jobs.conftest import ROOT

Job = Callable[..., Path]
SHARDS = scaled(203, 7000)
"""29 of each of the seven originals in the short profile."""
MOST_BYTES = 2 * 2**30
"""Resident bytes of a process that plans and reads, whatever the shards."""


def _mutate(folder: Path, count: int) -> dict[str, tuple[Original, str]]:
    """`count` mutated shards in `folder / "bad"`: each with its original and what was done to it."""
    whole = originals(folder / "whole")
    contents = [original.path.read_bytes() for original in whole]
    (folder / "bad").mkdir()
    made = {}
    for i in range(count):
        original = whole[i % len(whole)]
        kind, content = mutated(contents[i % len(whole)], original.path.name, contents, i // len(whole))
        name = f"{i:05d}-{original.path.name}"
        (folder / "bad" / name).write_bytes(content)
        made[name] = (original, kind)
    return made


def _read_all(folder: Path) -> list[dict[str, Any]]:
    """What a process that reads every shard of the folder says of each."""
    command = [sys.executable, "-m", "tests.chaos.read_all", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, sorted(folder.iterdir())[len(results)].name, done.stderr[-1000:])
    return results


def _decoded(path: Path) -> dict[int, str]:
    """The texts that the bytes of a shard really decode to, as far as they do, by other code than that of the pipeline."""
    texts: dict[int, str] = {}
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        row = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            try:
                column = file.read_row_group(group, columns=["text"], use_threads=False)["text"].to_pylist()
                texts |= {row + i: text for i, text in enumerate(column) if isinstance(text, (str, bytes))}
            except (pa.ArrowInvalid, OSError, UnicodeDecodeError):
                pass
            row += count
        return {row: text.decode() if isinstance(text, bytes) else text for row, text in texts.items()}
    content = path.read_bytes()
    start = 0
    for line in content.split(b"\n"):
        try:
            text = json.loads(line.decode())["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            text = None
        if isinstance(text, str):
            texts[start] = text
        start += len(line) + 1
    return texts


def test_every_piece_is_out_or_in_quarantine_and_nothing_crashes(tmp_path: Path) -> None:
    made = _mutate(tmp_path, SHARDS)
    results = _read_all(tmp_path / "bad")
    assert [r["shard"] for r in results] == sorted(made)
    raised = [(r["shard"], made[r["shard"]][1], r["raised"]) for r in results if "raised" in r]
    assert raised == []
    refused = [r for r in results if "refused" in r]
    assert len(refused) <= len(results) // 100  # a column of another name or type, for which a config is to be mended
    read = [r for r in results if "out" in r]
    assert all(r["closed"] for r in read)
    odd = {r["shard"]: [(row, t) for row, t in r["out"] if made[r["shard"]][0].texts.get(row) != t] for r in read}
    for name in [name for name, rows in odd.items() if rows]:
        truth = _decoded(tmp_path / "bad" / name) if _decodes(name) else None
        assert truth is None or all(truth.get(row) == text for row, text in odd[name]), (name, made[name][1])
    peak = max(r["peak"] for r in results)
    assert peak < MOST_BYTES
    assert sum(bool(r["quarantined"]) for r in read) > len(read) // 2
    assert {kind for _, kind in made.values()} >= {"bits_flipped", "footer_huge_number", "pages_flipped", "spliced", "nested"}
    counts = {"mutated_shards": len(results), "rows_out": sum(len(r["out"]) for r in read), "crashes": 0}
    tally("kills", "mutated shards", counts)


def _decodes(name: str) -> bool:
    """Other decoders give up a torn stream as a whole; its texts stand in no other order, so its rows are compared elsewhere."""
    return not name.endswith((".gz", ".zst"))


def test_rows_with_checksums_are_never_other_rows(tmp_path: Path) -> None:
    """Where the writer stored checksums of pages, damage in them costs the piece and changes no text."""
    whole = next(o for o in originals(tmp_path / "whole") if o.path.name == "crc.parquet")
    content = whole.path.read_bytes()
    (tmp_path / "bad").mkdir()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    column = pq.ParquetFile(whole.path).metadata.row_group(1).column(2)
    start = column.dictionary_page_offset
    for i in range(start + 40, min(footer, start + column.total_compressed_size), 37):
        (tmp_path / "bad" / f"{i}.parquet").write_bytes(content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :])
    results = _read_all(tmp_path / "bad")
    assert len(results) > 10
    assert all("out" in r for r in results)
    assert all(whole.texts[row] == text for r in results for row, text in r["out"])
    # Pages' headers are under no checksum, and some of what they say is never looked at.
    assert sum("unreadable" in r["quarantined"] for r in results) > 0.8 * len(results)


@pytest.mark.slow
def test_a_whole_job_over_mutated_shards_closes_its_books(tmp_path: Path, job: Job) -> None:
    made = _mutate(tmp_path, 35)
    refused = {r["shard"] for r in _read_all(tmp_path / "bad") if "refused" in r}
    for name in refused:
        (tmp_path / "bad" / name).unlink()
    config = load(job(input={"path": str(tmp_path / "bad"), "id": None, "keep": [], "piece": "16KiB"}))
    done = flow.run(config)
    books = done["books"]
    assert books["rows_in"] == books["rows_out"] + sum(books["quarantined"].values()) + books["filtered"]
    table = open_output(str(tmp_path / "out")).to_table(columns=["_shard", "_row"])
    rows = Counter(zip(table["_shard"].to_pylist(), table["_row"].to_pylist(), strict=True))
    assert max(rows.values()) == 1
    assert len(rows) == books["rows_out"] > 1000
    assert books["quarantined"]["unreadable"] > 5
    tally("kills", "a job over mutated shards", {"mutated_shards": len(made) - len(refused), "rows_doubled": 0})


def _dictionary_bomb(path: Path, column: str) -> int:
    """5 GB of text in a column, in less than half a megabyte."""
    value, rows = "x " * 2**19, 5000
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    columns = {"text": [f"text {i}" for i in range(rows)], "lang": ["en"] * rows, "doc": [f"d{i}" for i in range(rows)]}
    pq.write_table(pa.table({**columns, column: bomb}), path, compression="zstd")
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("bomb", ["text", "lang", "doc"])
def test_half_a_megabyte_that_decodes_to_five_gigabytes_is_read_in_bounded_memory(tmp_path: Path, bomb: str) -> None:
    rows = _dictionary_bomb(tmp_path / "bomb.parquet", bomb)
    assert (tmp_path / "bomb.parquet").stat().st_size < 500_000
    (result,) = _read_all(tmp_path)
    assert result["closed"]
    assert result["rows"] + sum(result["quarantined"].values()) == rows
    assert result["quarantined"]["too_large"] > rows // 2
    assert result["peak"] < MOST_BYTES, result["peak"] / 2**20
    tally("kills", f"parquet bomb in {bomb}", {"bombs": 1})
