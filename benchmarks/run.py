"""How fast the encoders and whole jobs of ours are on this machine's CPU, next to its limit and to what they replace.

    python -m benchmarks.run [--part engines] [--part shapes] [--part jobs] [--rounds 3] [--out FILE]

engines: the same windows by sentence-transformers, transformers and our backends, tokenizing included. shapes: encoders of
BERT-base, ModernBERT-base and DeBERTa-v3-base size with seeded weights. jobs: whole jobs on a corpus and on one four times as
large, next to encoding alone. All variants take turns in every round, after one run each to warm up; medians and all runs are in
the Markdown file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer

from benchmarks import ceiling, corpus, engines, reporting, shapes, whole_jobs
from benchmarks.jobs import Job, export
from benchmarks.reporting import Usage, mebibytes, number, runs, table
from benchmarks.workers import Result, compare, cosines
from operators.flops import flops
from operators.models.repository import resolve
from operators.segmentation import Ints

PARTS = ("engines", "shapes", "jobs")


def engine_section(folder: Path, tokens: int, rounds: int) -> str:
    """The same windows by every engine."""
    model = resolve(corpus.MODEL).path
    config = json.loads((model / "config.json").read_text())
    corpus.build(folder / "engines", corpus.long_tail(tokens))
    texts = pq.read_table(folder / "engines" / "shards")["text"].to_pylist()
    windows = engines.windows(texts, corpus.tokenizer(), 254)
    lengths = corpus.count_tokens(windows) + 2
    exports = folder / "exports"
    corpus.build(folder / "calibration", corpus.long_tail(10 * tokens))
    why = export(Job("local", "int8", "openvino", exports=exports), folder / "calibration", folder / "export")
    limit = ceiling.variant(config["hidden_size"], config["intermediate_size"])
    results = compare([*engines.variants(model, exports), limit], windows, rounds)
    found = [cosines(r.values, results[0].values) if r.usages else None for r in results[:-1]]
    agreement = [(f"{f[0]:.6f}", f"{f[1]:.6f}") if f else ("", "") for f in found]
    lines = [
        "## Engines",
        f"all-MiniLM-L6-v2, encoding alone: {len(windows)} windows of at most 256 tokens, {lengths.sum():,} tokens.",
        *_speed(results, lengths, flops(config, lengths), (("cosine mean", "min"), agreement)),
    ]
    return "\n\n".join([*lines, f"int8 was not made: {why}"] if why else lines)


def shape_section(folder: Path, tokens: int, rounds: int, layers: int | None = None) -> str:
    """Each of the common sizes with seeded weights; fewer `layers` only to try this out."""
    parts = ["## Encoders of common sizes, seeded weights"]
    windows = shapes.make_windows(tokens)
    lengths = np.array([len(window) for window in windows], np.int64)
    for name in shapes.SHAPES:
        model = shapes.make_model(folder / name, name, layers)
        config = json.loads((model / "config.json").read_text())
        limit = ceiling.variant(config["hidden_size"], config["intermediate_size"])
        results = compare([*shapes.variants(model), limit], windows, rounds)
        found = [shapes.apart(r.values, results[0].values) if r.usages else None for r in results[:-1]]
        agreement = [(f"{f[0]:.6f}", f"{f[1]:.1e}") if f else ("", "") for f in found]
        spread = f"{lengths.min()} to {lengths.max()} tokens, {np.median(lengths):.0f} in the median"
        parts.append(f"### {name}\n\n{len(windows)} windows of {spread}; {lengths.sum():,} tokens.")
        parts += _speed(results, lengths, flops(config, lengths), (("cosine mean", "largest difference"), agreement))
    return "\n\n".join(parts)


Agreement = tuple[tuple[str, str], list[tuple[str, str]]]


def _speed(results: Sequence[Result], lengths: Ints, work: float | None, agreement: Agreement) -> list[str]:
    """The table of some engines; the last result is the matrix products', the first the reference's."""
    *engine_results, products = results
    limits = {precision: median(rates) for precision, rates in ceiling.by_precision(products.values).items()}
    tokens, names = int(lengths.sum()), agreement[0]
    headers = ["engine", "tokens/s", "runs", "ratio", "GFLOP/s", "MFU", *names, "cores used", "cores free", "peak MiB"]
    base = _median_wall(engine_results[0].usages)
    rows = []
    for result, agrees in zip(engine_results, agreement[1], strict=True):
        wall, usages = _median_wall(result.usages), result.usages
        if not wall:
            rows.append([result.variant.name, *[None] * (len(headers) - 1)])
            continue
        rate = work / wall / 1e9 if work else None
        limit = next((limit for precision, limit in limits.items() if f" {precision}" in result.variant.name), None)
        share = f"{rate / limit:.0%}" if rate and limit else None
        ratio = f"{base / wall:.2f}" if base else None
        speeds = runs([tokens / usage.wall for usage in usages])
        memory = mebibytes([usage.peak_bytes for usage in usages])
        shares = reporting.shares(usages)
        rows.append([result.variant.name, number(tokens / wall), speeds, ratio, number(rate), share, *agrees, *shares, memory])
    skipped = [f"* {r.variant.name} did not run: {r.reason}" for r in results if r.reason]
    lines = [table(headers, rows), ceiling.describe(ceiling.by_precision(products.values))]
    return [*lines, "\n".join(skipped)] if skipped else lines


def _median_wall(usages: Sequence[Usage]) -> float:
    """Seconds; 0 where there are none."""
    return median(usage.wall for usage in usages) if usages else 0.0


def main(
    part: Annotated[list[str], typer.Option(help=f"what to measure: {', '.join(PARTS)}; all, if not given")] = list(PARTS),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="runs of each variant", min=1)] = 3,
    sample: Annotated[int, typer.Option(help="tokens of windows that are encoded alone", min=100)] = 20_000,
    tokens: Annotated[int, typer.Option(help="tokens of the smaller corpus of whole jobs", min=100)] = 80_000,
    job: Annotated[list[str], typer.Option(help=f"whole jobs: {', '.join(whole_jobs.KINDS)}")] = whole_jobs.KINDS,
    layers: Annotated[int | None, typer.Option(help="layers of the shapes, to try this out")] = None,
    out: Annotated[Path, typer.Option(help="file to write")] = reporting.ROOT / "benchmarks/results/run.md",
) -> None:
    """Measure and write the results."""
    if unknown := sorted(set(part) - set(PARTS)):
        raise typer.BadParameter(f"{unknown[0]!r} is no part; there are: {', '.join(PARTS)}", param_hint="--part")
    if unknown := sorted(set(job) - set(whole_jobs.KINDS)):
        raise typer.BadParameter(f"{unknown[0]!r} is no job; there are: {', '.join(whole_jobs.KINDS)}", param_hint="--job")
    legend = f"Median of {rounds} interleaved rounds. `!`: other work left less than {reporting.UNDISTURBED:.1%} of the cores."
    sections = [reporting.header("Speed on CPUs", ["benchmarks.run", *sys.argv[1:]]), legend]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for chosen in dict.fromkeys(part):
            if chosen == "engines":
                sections.append(engine_section(folder, sample, rounds))
            elif chosen == "shapes":
                sections.append(shape_section(folder, sample, rounds, layers))
            else:
                sections.append(whole_jobs.section(folder, tokens, sample, rounds, job))
            reporting.write(out, sections)  # after each, so that a later failure costs nothing


if __name__ == "__main__":
    typer.run(main)
