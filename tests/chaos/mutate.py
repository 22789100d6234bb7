"""Shards, and seeded damage to their bytes: what disks, networks, broken writers and hostile ones make of files.

originals(folder)          a few shards of every format and compression, with the rows that they hold
mutated(content, seed)     the same bytes with one kind of damage, drawn by the seed
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

ROWS = 300
_PARQUET = {
    "crc": {"compression": "zstd", "write_page_checksum": True, "row_group_size": 100},
    "plain": {"compression": "none", "use_dictionary": False, "row_group_size": 120},
    "pages": {"compression": "snappy", "data_page_version": "2.0", "data_page_size": 512},
    "gzip": {"compression": "gzip", "row_group_size": 90, "use_byte_stream_split": False},
}
"""Ways to write Parquet, by the name of the shard."""


@dataclass(frozen=True)
class Original:
    """A whole shard. `texts`: of its rows, by `_row` as the reader numbers them."""

    path: Path
    texts: dict[int, str]


def originals(folder: Path) -> list[Original]:
    """Shards of ROWS rows each, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = _texts()
    table = pa.table({"doc": [f"d{i}" for i in range(ROWS)], "lang": ["en", "zh", None] * (ROWS // 3), "text": texts})
    made = []
    for name, options in _PARQUET.items():
        pq.write_table(table, folder / f"{name}.parquet", **options)
        made.append(Original(folder / f"{name}.parquet", dict(enumerate(texts))))
    lines = [json.dumps(row).encode() + b"\n" for row in table.to_pylist()]
    starts = [sum(map(len, lines[:i])) for i in range(ROWS)]
    content = b"".join(lines)
    for suffix, compress in (("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)):
        path = folder / f"lines.jsonl{suffix}"
        path.write_bytes(compress(content))
        made.append(Original(path, dict(zip(starts, texts, strict=True))))
    return made


def mutated(content: bytes, name: str, others: list[bytes], seed: int) -> tuple[str, bytes]:
    """What was done to the bytes of shard `name`, and the bytes. `others`: of shards that parts may be spliced from."""
    rng = random.Random(f"{name} {seed}")
    kinds = [*_ANY, *(_PARQUET_ONLY if name.endswith(".parquet") else _LINES_ONLY if name.endswith(".jsonl") else _STREAM_ONLY)]
    kind = kinds[seed % len(kinds)]
    if kind is _spliced:
        other = rng.choice(others)
        return "spliced", _spliced(content + other, rng)
    return kind.__name__.strip("_"), kind(content, rng)


def _texts() -> list[str]:
    rng = random.Random(7)
    words = ["river", "mountain", "quiet", "engine", "letter", "\u6cb3", "\u5c71", "caf\u00e9"]
    return [" ".join(rng.choice(words) for _ in range(rng.randrange(40))) for _ in range(ROWS)]


def _range(size: int, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(max(1, size))
    return start, min(size, start + rng.choice([1, 4, 16, 100, 1000]))


def _bits_flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _cut_in_half(content: bytes, _: random.Random) -> bytes:
    return content[: len(content) // 2]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    start, stop = _range(len(content), rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    start, stop = _range(len(content), rng)
    return content[:start] + rng.randbytes(stop - start) + content[stop:]


def _doubled(content: bytes, rng: random.Random) -> bytes:
    start, stop = _range(len(content), rng)
    return content[:stop] + content[start:]


def _removed(content: bytes, rng: random.Random) -> bytes:
    start, stop = _range(len(content), rng)
    return content[:start] + content[stop:]


def _spliced(content: bytes, rng: random.Random) -> bytes:
    """Bytes of two shards: some of the first, then some of the second."""
    return content[: rng.randrange(len(content))] + content[rng.randrange(len(content)) :]


def _first_bytes(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(4) + content[4:]


def _footer(content: bytes) -> int:
    """Where a Parquet file's footer begins."""
    return max(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))


def _footer_flipped(content: bytes, rng: random.Random) -> bytes:
    start = _footer(content)
    return content[:start] + _bits_flipped(content[start:-8], rng) + content[-8:]


def _footer_huge_number(content: bytes, rng: random.Random) -> bytes:
    """Some number of the footer becomes one of many digits: rows, sizes, offsets, counts of lists."""
    at = rng.randrange(_footer(content), len(content) - 8)
    huge = b"\xfe" + b"\xff" * rng.randrange(1, 8) + b"\x7f"
    footer = content[_footer(content) : at] + huge + content[at + 1 : -8]
    return content[: _footer(content)] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _footer_length(content: bytes, rng: random.Random) -> bytes:
    return content[:-8] + rng.randbytes(rng.choice([2, 4])).ljust(4, b"\0") + b"PAR1"


def _pages_flipped(content: bytes, rng: random.Random) -> bytes:
    """Pages and their headers, not the footer: what checksums of pages are for."""
    return _bits_flipped(content[: _footer(content)], rng) + content[_footer(content) :]


def _not_utf8(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.choice([b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\0"]) + content[at:]


def _one_line(content: bytes, _: random.Random) -> bytes:
    return content.replace(b"\n", b" ")


def _nested(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines[rng.randrange(len(lines))] = b'{"text": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n"
    return b"".join(lines)


def _odd_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    odd = [
        b"null\n",
        b"[]\n",
        b"{\n",
        b'{"text": 1e999}\n',
        b'{"text": "\\ud800"}\n',
        b"1" * 5000 + b"\n",
        b'{"text": "a"} {"text": "b"}\n',
    ]
    for _ in range(5):
        lines.insert(rng.randrange(len(lines)), rng.choice(odd))
    return b"".join(lines)


_ANY: list[Callable[[bytes, random.Random], bytes]] = [
    *(_bits_flipped, _truncated, _zeroed, _overwritten, _doubled, _removed, _spliced, _first_bytes, _cut_in_half),
]
_PARQUET_ONLY = [_footer_flipped, _footer_huge_number, _footer_length, _pages_flipped]
_STREAM_ONLY = [_bits_flipped, _truncated]
_LINES_ONLY = [_not_utf8, _one_line, _nested, _odd_lines]
