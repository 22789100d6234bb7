"""How fast the encoders and whole jobs of ours are on this machine's CPU, next to its limit and to what they replace.

    python -m benchmarks.run [--part engines] [--part shapes] [--part jobs] [--rounds 3] [--out FILE]

engines: the same windows by sentence-transformers, transformers and our backends, tokenizing included. shapes: encoders of
BERT-base, ModernBERT-base and DeBERTa-v3-base size with seeded weights. jobs: whole jobs on a corpus and on one four times as
large. All variants take turns in every round, after one run each to warm up; medians and all runs are in the Markdown file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer

from benchmarks import ceiling, corpus, engines, reporting, shapes
from benchmarks.jobs import Job, export, run_job
from benchmarks.reporting import Failed, Usage, mebibytes, number, runs, table
from benchmarks.workers import Result, compare, cosines
from operators.flops import flops
from operators.models.repository import resolve
from operators.segmentation import Ints

PARTS = ("engines", "shapes", "jobs")
_ENGINES = ("local", "ray")


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
    limits = dict(zip(ceiling.PRECISIONS, products.values, strict=False))
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
    measured = ", ".join(f"{precision} {limit:,.0f} GFLOP/s" for precision, limit in limits.items())
    skipped = [f"* {r.variant.name} did not run: {r.reason}" for r in results if r.reason]
    lines = [table(headers, rows), f"Matrix products, all cores, fastest way of torch: {measured or 'not measured'}."]
    return [*lines, "\n".join(skipped)] if skipped else lines


def _median_wall(usages: Sequence[Usage]) -> float:
    """Seconds; 0 where there are none."""
    return median(usage.wall for usage in usages) if usages else 0.0


def job_section(folder: Path, tokens: int, rounds: int) -> str:
    """Whole jobs at one and four times the corpus."""
    sizes = {"1x": folder / "1x", "4x": folder / "4x"}
    lines = []
    for factor, (size, path) in zip((1, 4), sizes.items(), strict=True):
        found = corpus.build(path, corpus.long_tail(tokens * factor))
        lines.append(f"* {size}: " + ", ".join(f"{key} {value:,}" for key, value in found.items()))
    kinds = [(engine, precision) for engine in _ENGINES for precision in ceiling.PRECISIONS]
    done: dict[tuple[str, str, str], list[tuple[Usage, dict[str, Any]]]] = {}
    failed = []
    for number_ in range(rounds):
        for size, path in sizes.items():
            for engine, precision in kinds:
                print(f"round {number_ + 1} of {rounds}: {engine} {precision} {size}", file=sys.stderr, flush=True)
                try:
                    run = run_job(Job(engine, precision), path, folder / "job")
                except Failed as error:
                    failed.append(f"* {engine} {precision} {size} did not run: {error}")
                    continue
                done.setdefault((engine, precision, size), []).append(run)
    rows = [_job_row(f"{e} {p}", done[e, p, "1x"], done[e, p, "4x"]) for e, p in kinds if {(e, p, s) for s in sizes} <= set(done)]
    headers = ["job", *(f"{what} {size}" for what in ("seconds", "runs", "tokens/s", "warm tokens/s") for size in sizes)]
    headers += ["warm 4x to 1x", "idle", "MFU", "cores used", "cores free", "peak MiB 1x", "4x"]
    notes = (
        "Seconds and tokens/s are of the whole command; warm: from the first piece to the last, by the job's own report. "
        "Idle (of the encoders), MFU and cores are of 4x."
    )
    title = "## Whole jobs\n\nall-MiniLM-L6-v2, Parquet to table, whole documents."
    return "\n\n".join([title, "\n".join(lines), table(headers, rows), notes, *failed])


def _job_row(name: str, *sizes: list[tuple[Usage, dict[str, Any]]]) -> list[object]:
    walls = [median(usage.wall for usage, _ in runs_) for runs_ in sizes]
    warm = [_speed_of(runs_, "warm_tokens_per_second") for runs_ in sizes]
    idle, mfu = (_speed_of(sizes[1], key) for key in ("idle_share", "mfu"))
    return [
        name,
        *(number(wall, 1) for wall in walls),
        *(runs([usage.wall for usage, _ in runs_], 1) for runs_ in sizes),
        *(number(runs_[0][1]["tokens"] / wall) for runs_, wall in zip(sizes, walls, strict=True)),
        *(number(rate) for rate in warm),
        f"{warm[1] / warm[0]:.3f}" if warm[0] and warm[1] else None,
        None if idle is None else f"{idle:.1%}",
        None if mfu is None else f"{mfu:.0%}",
        *reporting.shares([usage for usage, _ in sizes[1]]),
        *(mebibytes([usage.peak_bytes for usage, _ in runs_]) for runs_ in sizes),
    ]


def _speed_of(runs_: list[tuple[Usage, dict[str, Any]]], key: str) -> float | None:
    """The median of one of the reports' figures; None where a job was too small for it."""
    found = [report["speed"][key] for _, report in runs_]
    return None if None in found else median(found)


def main(
    part: Annotated[list[str], typer.Option(help=f"what to measure: {', '.join(PARTS)}; all, if not given")] = list(PARTS),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="runs of each variant", min=1)] = 3,
    sample: Annotated[int, typer.Option(help="tokens of the engines' windows, and of the shapes'", min=100)] = 20_000,
    tokens: Annotated[int, typer.Option(help="tokens of the smaller corpus of whole jobs", min=100)] = 80_000,
    layers: Annotated[int | None, typer.Option(help="layers of the shapes, to try this out")] = None,
    out: Annotated[Path, typer.Option(help="file to write")] = reporting.ROOT / "benchmarks/results/run.md",
) -> None:
    """Measure and write the results."""
    if unknown := sorted(set(part) - set(PARTS)):
        raise typer.BadParameter(f"{unknown[0]!r} is no part; there are: {', '.join(PARTS)}", param_hint="--part")
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
                sections.append(job_section(folder, tokens, rounds))
            reporting.write(out, sections)  # after each, so that a later failure costs nothing


if __name__ == "__main__":
    typer.run(main)
