"""Rebuild demo/corpus from three public packages: English novels, English definitions, Chinese classics and poems.

    python -m demo.build_corpus

Needs apt-get, dpkg and npm. The packages (Debian's r-cran-janeaustenr and wordnet-base, npm's chinese-poetry) are unpacked
under build/packages. The choice of documents is fixed, so the same packages give the same rows. Beside them stand a few bad
rows on purpose: demo/README.md lists them.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent
CORPUS = ROOT / "corpus"
PACKAGES = ROOT.parent / "build" / "packages"

CHAPTERS_PER_NOVEL = 4
POEMS = 120
WORDS_PER_TOPIC = 24
TOPICS = (
    "stringed_instrument",
    "wind_instrument",
    "bird",
    "dog",
    "cat",
    "fish",
    "insect",
    "tree",
    "flower",
    "edible_fruit",
    "vegetable",
    "cheese",
    "bread",
    "beverage",
    "garment",
    "ship",
    "aircraft",
    "car",
    "mountain",
    "body_of_water",
    "star",
    "disease",
    "tool",
    "weapon",
    "furniture",
    "house",
    "scientist",
    "artist",
    "musician",
    "dance",
)
"""Words of WordNet; the definitions are those of narrower terms."""

Row = dict[str, str]
Terms = dict[str, tuple[str, str, list[str]]]
"""WordNet: offset -> (first word, definition without examples, offsets of narrower terms)."""


def novels() -> Iterator[Row]:
    """The first chapters of Jane Austen's six novels, one document each."""
    database = unpack_deb("r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for lines in r_string_vectors(database.read_bytes()):
        novel = lines[0].title().replace(" And ", " and ")
        starts = [i for i, line in enumerate(lines) if re.fullmatch(r"(?i)\s*chapter \w+\s*", line)]
        for number, (start, stop) in enumerate(itertools.islice(itertools.pairwise(starts), CHAPTERS_PER_NOVEL), 1):
            yield {
                "doc_id": f"austen-{novel.lower().replace(' ', '-')}-{number:02d}",
                "title": f"{novel}, chapter {number}",
                "lang": "en",
                "source": "Jane Austen",
                "text": unwrap(lines[start + 1 : stop]),
            }


def unwrap(lines: Iterable[str]) -> str:
    """Hard-wrapped lines as paragraphs, a blank line between two."""
    paragraphs = (" ".join(line.strip() for line in group) for filled, group in itertools.groupby(lines, key=bool) if filled)
    return "\n\n".join(paragraphs)


def r_string_vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: each a 4-byte length and a zlib stream of R's XDR serialization."""
    while database:
        stream = zlib.decompressobj()
        raw = stream.decompress(database[4:])
        database = stream.unused_data
        position = 18 + struct.unpack(">i", raw[14:18])[0]  # past the header, which ends with the name of the encoding
        (count,) = struct.unpack(">i", raw[position + 4 : position + 8])
        position += 8
        strings = []
        for _ in range(count):
            (length,) = struct.unpack(">i", raw[position + 4 : position + 8])
            position += 8
            strings.append(raw[position : position + length].decode())
            position += length
        yield strings


def definitions() -> Iterator[Row]:
    """WordNet's definitions of a few hundred nouns, topic by topic."""
    terms = read_nouns(unpack_deb("wordnet-base") / "usr/share/wordnet/data.noun")
    by_word = {word: offset for offset, (word, _, _) in reversed(terms.items())}
    seen: set[str] = set()
    for topic in TOPICS:
        chosen = 0
        for word, gloss in narrower(by_word[topic], terms):
            if chosen == WORDS_PER_TOPIC:
                break
            if word in seen or not word.isalpha() or not word.islower() or len(gloss) < 40:
                continue
            seen.add(word)
            chosen += 1
            yield {
                "doc_id": f"wordnet-{word}",
                "title": word,
                "lang": "en",
                "source": f"WordNet: {topic.replace('_', ' ')}",
                "text": f"{word}: {gloss}",
            }


def read_nouns(path: Path) -> Terms:
    """The terms of WordNet's data.noun."""
    terms: Terms = {}
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        narrower_terms = re.findall(r" ~ (\d{8}) n ", fields)
        terms[fields[:8]] = (fields.split(" ")[4], re.split(r'; "', gloss)[0].strip(), narrower_terms)
    return terms


def narrower(offset: str, terms: Terms) -> Iterator[tuple[str, str]]:
    """Words and definitions of all terms below `offset`, the nearest first."""
    queue = list(terms[offset][2])
    for term in queue:  # grows while it is walked
        word, gloss, below = terms[term]
        queue.extend(below)
        yield word, gloss


def analects() -> Iterator[Row]:
    """The twenty books of the Analects, one document each."""
    for number, book in enumerate(json.loads((unpack_npm() / "dist/lunyu/lunyu.json").read_text(encoding="utf-8")), 1):
        text = "\n".join(book["paragraphs"])
        yield {"doc_id": f"lunyu-{number:02d}", "title": book["chapter"], "source": "Analects", "text": text}


def poems() -> Iterator[Row]:
    """Song dynasty poems without gaps in their transmission."""
    found = json.loads((unpack_npm() / "dist/songci/ci.song.1000.json").read_text(encoding="utf-8"))
    whole = (poem for poem in found if not any("\u25a1" in line for line in poem["paragraphs"]))
    for number, poem in enumerate(itertools.islice(whole, POEMS), 1):
        text = "\n".join(line.strip() for line in poem["paragraphs"])
        title = f"{poem['author']} {poem['rhythmic']}"
        yield {"doc_id": f"songci-{number:03d}", "title": title, "source": "Song ci", "text": text}


def write_parquet(path: Path, rows: list[Row], row_group_size: int) -> None:
    """One shard, zstd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", row_group_size=row_group_size)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """One gzipped shard, the same bytes on every day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines), mtime=0))


def as_lines(rows: Iterable[Row]) -> list[bytes]:
    """Each row as a line of JSON."""
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def unpack_deb(package: str) -> Path:
    """Where the Debian package's files are, downloaded once."""
    root = PACKAGES / package
    if not root.exists():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=PACKAGES, check=True)
        subprocess.run(["dpkg", "-x", str(next(PACKAGES.glob(f"{package}_*.deb"))), str(root)], check=True)
    return root


def unpack_npm() -> Path:
    """Where the files of chinese-poetry are, downloaded once."""
    root = PACKAGES / "package"
    if not root.exists():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", "chinese-poetry@2.0.1"], cwd=PACKAGES, check=True)
        with tarfile.open(PACKAGES / "chinese-poetry-2.0.1.tgz") as archive:
            wanted = [m for m in archive if m.name.startswith(("package/dist/lunyu", "package/dist/songci"))]
            archive.extractall(PACKAGES, wanted, filter="data")
    return root


def main() -> None:
    """Write demo/corpus anew."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    chapters = list(novels())
    half = len(chapters) // 2
    write_parquet(CORPUS / "novels/part-0.parquet", chapters[:half], row_group_size=4)
    write_parquet(CORPUS / "novels/part-1.parquet", chapters[half:], row_group_size=half)
    # No lang column in these: the folder says it.
    write_parquet(CORPUS / "lang=zh/analects.parquet", list(analects()), row_group_size=10)
    write_parquet(CORPUS / "lang=zh/poems.parquet", list(poems()), row_group_size=POEMS)
    words = as_lines(definitions())
    half = len(words) // 2
    bad = [
        b'{"doc_id": "bad-json", "title": "cut off", "lang": "en", "source": "bad on purpose", "text": "a line that en',
        b'{"doc_id": "null-text", "title": "no text", "lang": "en", "source": "bad on purpose", "text": null}',
        b'{"doc_id": "not-text", "title": "a number", "lang": "en", "source": "bad on purpose", "text": 42}',
        b'{"doc_id": "bad-encoding", "title": "Latin-1", "lang": "en", "source": "bad on purpose", "text": "caf\xe9"}',
    ]
    empty = as_lines([{"doc_id": "empty-text", "title": "(empty)", "lang": "en", "source": "empty on purpose", "text": ""}])
    write_lines(CORPUS / "definitions/part-0.jsonl.gz", [*words[:100], *bad[:2], *words[100:half]])
    write_lines(CORPUS / "definitions/part-1.jsonl.gz", [*words[half:-50], *bad[2:], *empty, *words[-50:]])
    (CORPUS / "truncated.parquet").write_bytes((CORPUS / "lang=zh/poems.parquet").read_bytes()[:2000])


if __name__ == "__main__":
    main()
