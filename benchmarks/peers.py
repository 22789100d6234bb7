"""Whole jobs, from Parquet to Parquet, of Tidemill and of what people use today, on the same documents.

    python -m benchmarks.peers [--tokens 800000] [--rounds 3] [--only NAME] [--out FILE]

Every peer is a script in benchmarks/peer_scripts, as someone would write it, run in a fresh process; all take turns in every
round, once on 100 short documents (start-up) and once on the corpus of benchmarks/corpus.py. Peers cut documents at 256 tokens,
so Tidemill does the same (`segments.policy: truncate`), but for the row that reads whole documents. Daft has a pyarrow of its
own: it is installed into .venv-daft where that is not there, and left out, with the reason, where it cannot be.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

import tidemill
from benchmarks import corpus, reporting
from benchmarks.jobs import TASK, Job, export, run_job
from benchmarks.reporting import ROOT, Failed, Usage, mebibytes, number, run_command, runs, table
from benchmarks.workers import cosines
from operators.models.repository import resolve
from operators.segmentation import Ints

SCRIPTS = ROOT / "benchmarks" / "peer_scripts"
DAFT = "daft==0.7.26"
_DAFT_FOLDER = ROOT / ".venv-daft"
_WINDOW = 256
_SHORT = [20 + i % 40 for i in range(100)]
"""Lengths of the short documents."""


@dataclass(frozen=True)
class Peer:
    """A script, or a job of ours."""

    name: str
    script: str = ""
    job: Job | None = None

    @property
    def whole(self) -> bool:
        """Whether it reads whole documents."""
        return self.job is not None and not self.job.truncate


REFERENCE = Peer("sentence-transformers encode", "sentence_transformers_encode.py")
THEIRS = [
    REFERENCE,
    Peer("transformers pipeline, mean pooling", "transformers_pipeline.py"),
    Peer("Ray Data, plain script", "ray_plain.py"),
    Peer("Ray Data, tuned script", "ray_tuned.py"),
    Peer("Daft embed_text", "daft_embed_text.py"),
]


_INT8 = Job(precision="int8", backend="openvino", truncate=True)
_ENGINES = ("local", "ray")
OURS = [
    *(Peer(f"Tidemill {e} fp32", job=Job(e, truncate=True)) for e in _ENGINES),
    *(Peer(f"Tidemill {e} bf16", job=Job(e, "bf16", truncate=True)) for e in _ENGINES),
    *(Peer(f"Tidemill {e} openvino int8", job=replace(_INT8, engine=e)) for e in _ENGINES),
    Peer("Tidemill ray fp32, whole documents", job=Job("ray")),
]


@dataclass
class Result:
    """What the rounds found of a peer."""

    peer: Peer
    short: list[Usage] = field(default_factory=list)
    long: list[Usage] = field(default_factory=list)
    vectors: Any = None
    """float [D, 384] of the corpus, by id, from the last round."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens that it encoded, of the short documents and of the long."""
    reason: str = ""
    """Why it did not run."""


@dataclass(frozen=True)
class Bench:
    """Where the parts of a measurement are."""

    folder: Path
    model: Path

    @property
    def exports(self) -> Path:
        """Of int8."""
        return self.folder / "exports"

    def run(self, result: Result, size: str) -> None:
        """One run of a peer on the short or the long corpus. Failed where it does not end well."""
        source, folder, peer = self.folder / size, self.folder / "run", result.peer
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if peer.job:
            job = replace(peer.job, exports=self.exports) if peer.job.precision == "int8" else peer.job
            usage, report = run_job(job, source, folder / "job")
            tokens = report["tokens"]
        else:
            command = [sys.executable, str(SCRIPTS / peer.script), str(source / "shards"), str(folder / "out"), str(self.model)]
            extra = {"PYTHONPATH": str(install_daft())} if peer.script.startswith("daft") else {}
            usage, _ = run_command(command, folder / "log.txt", extra)
            tokens = int(np.minimum(self.lengths(size) + 2, _WINDOW).sum())
        getattr(result, size).append(usage)
        result.tokens[size] = tokens
        if size == "long":
            result.vectors = _vectors(peer, folder)

    def lengths(self, size: str) -> Ints:
        """int64 [D]: tokens of the documents, without special ones."""
        return corpus.count_tokens(pq.read_table(self.folder / size / "shards")["text"].to_pylist())


def _vectors(peer: Peer, folder: Path) -> Any:
    """float [D, 384], ordered by id."""
    if peer.job:
        found = tidemill.open_output(str(folder / "job" / "table")).to_table(columns=["id", TASK])
    else:
        found = pq.read_table(folder / "out")
    column = found.sort_by(found.schema.names[0]).column(1).combine_chunks()
    return pa.compute.list_flatten(column).to_numpy(zero_copy_only=False).reshape(len(column), -1)


def install_daft() -> Path:
    """The folder with Daft and its own pyarrow, made on the first call; torch and the rest are those of this environment.

    Failed, with pip's last words, where it cannot be installed."""
    if not (_DAFT_FOLDER / f"{DAFT.replace('==', '-')}.dist-info").is_dir():
        pip = [str(Path(sys.base_prefix, "bin", "python3")), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        with tempfile.TemporaryDirectory() as folder:
            run_command([*pip, "--upgrade", "--target", str(_DAFT_FOLDER), DAFT], Path(folder) / "log.txt")
    return _DAFT_FOLDER


def measure(bench: Bench, peers: Sequence[Peer], rounds: int) -> list[Result]:
    """Interleaved rounds of all peers. One that fails is not tried again."""
    results = [Result(peer) for peer in peers]
    for number_ in range(rounds):
        for result in results:
            for size in ("short", "long"):
                if result.reason:
                    continue
                print(f"round {number_ + 1} of {rounds}: {result.peer.name}, {size}", file=sys.stderr, flush=True)
                try:
                    bench.run(result, size)
                except Failed as error:
                    result.reason = str(error)
                    print(f"skipped {result.peer.name}: {error}", file=sys.stderr, flush=True)
    return results


def report(results: Sequence[Result], documents: int, body_tokens: int) -> list[str]:
    """The tables."""
    done = [result for result in results if not result.reason]
    reference = next((r.vectors for r in done if r.peer == REFERENCE), None)
    wide = [_long_row(result, reference, documents, body_tokens) for result in done]
    short = [[r.peer.name, f"{_wall(r.short):.1f}", runs([u.wall for u in r.short], 1), *reporting.shares(r.short)] for r in done]
    parts = [
        "## The corpus",
        table(_LONG, wide),
        "Start-up: the seconds of 100 short documents by those of the corpus. Ready: the model is loaded, where the script says "
        "so. Steady: the tokens by which the corpus is larger than the short documents over the seconds that it took longer, so "
        "without start-up. Cosines are against sentence-transformers, on the same ids.",
        "## 100 short documents",
        table(["job", "seconds", "runs", "cores used", "cores free"], short),
    ]
    theirs = [r for r in done if not r.peer.job]
    ratios = [(compared, r) for r in theirs for compared in (_wall_ratio, _steady_ratio)]
    parts += [
        "## How many times faster",
        "Whole: by seconds of the whole job, start-up included. Steady: by steady tokens/s.",
        table(
            ["job", *(f"{r.peer.name}: {kind}" for r in theirs for kind in ("whole", "steady"))],
            [[r.peer.name, *(number(compared(r, other), 2) for compared, other in ratios)] for r in done if r.peer.job],
        ),
    ]
    skipped = [f"* {r.peer.name} did not run: {r.reason}" for r in results if r.reason]
    return [*parts, "\n".join(skipped)] if skipped else parts


_LONG = ["job", "seconds", "runs", "start-up", "ready", "documents/s", "tokens encoded", "tokens/s", "steady tokens/s"]
_LONG += ["text dropped", "cosine mean", "min", "cores used", "cores free", "peak MiB"]


def _long_row(result: Result, reference: Any, documents: int, body_tokens: int) -> list[object]:
    wall = _wall(result.long)
    ready = [usage.ready for usage in result.long if usage.ready is not None]
    read = body_tokens if result.peer.whole else result.tokens["long"] - 2 * documents
    compared = None if reference is None or result.peer.whole else cosines(result.vectors, reference)
    return [
        result.peer.name,
        f"{wall:.1f}",
        runs([usage.wall for usage in result.long], 1),
        f"{_wall(result.short) / wall:.0%}",
        f"{median(ready):.1f}" if ready else None,
        f"{documents / wall:.1f}",
        number(result.tokens["long"]),
        number(result.tokens["long"] / wall),
        number(_steady(result)),
        f"{1 - read / body_tokens:.1%}",
        *((f"{c:.6f}" for c in compared) if compared else (None, None)),
        *reporting.shares(result.long),
        mebibytes([usage.peak_bytes for usage in result.long]),
    ]


def _wall(usages: Sequence[Usage]) -> float:
    return median(usage.wall for usage in usages)


def _steady(result: Result) -> float | None:
    """Tokens in a second beyond the start-up, which the short documents stand for; None where it is no longer."""
    seconds = _wall(result.long) - _wall(result.short)
    tokens = result.tokens["long"] - result.tokens["short"]
    return tokens / seconds if seconds > 0 and tokens > 0 else None


def _wall_ratio(ours: Result, theirs: Result) -> float | None:
    return _wall(theirs.long) / _wall(ours.long)


def _steady_ratio(ours: Result, theirs: Result) -> float | None:
    mine, other = _steady(ours), _steady(theirs)
    return mine / other if mine and other else None


def main(
    tokens: Annotated[int, typer.Option(help="tokens of the corpus, about", min=100)] = 800_000,
    rounds: Annotated[int, typer.Option(help="runs of each job", min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(help="jobs whose names hold this, and the reference")] = None,
    out: Annotated[Path, typer.Option(help="file to write")] = ROOT / "benchmarks/results/peers.md",
) -> None:
    """Measure and write the results."""
    chosen = [p for p in (*THEIRS, *OURS) if p == REFERENCE or not only or any(part in p.name for part in only)]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), resolve(corpus.MODEL).path)
        corpus.build(bench.folder / "short", _SHORT, shards=1)
        found = corpus.build(bench.folder / "long", corpus.long_tail(tokens))
        if any(peer.job and peer.job.precision == "int8" for peer in chosen):
            # Before anything is timed; where it cannot be made, the jobs that want it say so.
            export(replace(_INT8, exports=bench.exports), bench.folder / "long", bench.folder / "export")
        results = measure(bench, chosen, rounds)
    legend = f"Medians of {rounds} interleaved rounds. `!`: other work left less than {reporting.UNDISTURBED:.1%} of the cores."
    head = reporting.header("Whole jobs against peers", ["benchmarks.peers", *sys.argv[1:]])
    about = "all-MiniLM-L6-v2; corpus: " + ", ".join(f"{key} {value:,}" for key, value in found.items()) + "."
    reporting.write(out, [head, legend, about, *report(results, int(found["documents"]), int(found["tokens"]))])


if __name__ == "__main__":
    typer.run(main)
