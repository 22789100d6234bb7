"""Speed and correctness of the encoders on one GPU, against other libraries, in parts of a few minutes each.

    python -m benchmarks.gpu environment|correctness|deberta-attention|profile|oom --out DIR
    python -m benchmarks.gpu end-to-end --model bert-base --dataset A --out DIR

Writes DIR/<part>.json and DIR/<part>.md. Needs torch with CUDA, transformers, tokenizers, safetensors, numpy, pyarrow and
psutil; no Ray. sentence-transformers, flashdeberta and disentangled-flash are compared with where they are installed. With --tiny
all parts run in seconds on a CPU, which shows that they run and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "psutil")
PARTS = {
    "environment": "benchmarks.gpu_checks:environment",
    "correctness": "benchmarks.gpu_checks:correctness",
    "deberta-attention": "benchmarks.gpu_checks:deberta_attention",
    "end-to-end": "benchmarks.gpu_speed:end_to_end",
    "profile": "benchmarks.gpu_speed:profile",
    "oom": "benchmarks.gpu_checks:out_of_memory",
}
"""Each a function of an `operators`-only module: options and a folder for models in, facts and rows out."""

MODELS = ("bert-base", "modernbert-base", "deberta-v3-base")


def main(arguments: list[str] | None = None) -> int:
    """Run one part; the exit code."""
    options = _parser().parse_args(arguments)
    missing = [name for name in _NEEDED if not _importable(name)]
    if missing:
        print(f"benchmarks.gpu needs {', '.join(missing)}; install them, for instance with pip", file=sys.stderr)
        return 2
    torch = importlib.import_module("torch")
    options.device = "cpu" if options.tiny else "cuda"
    if not options.tiny and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device; --tiny tries the parts on a CPU", file=sys.stderr)
        return 2
    module, _, function = PARTS[options.part].partition(":")
    with tempfile.TemporaryDirectory() as folder:
        facts, rows = getattr(importlib.import_module(module), function)(options, Path(folder))
    _write(options, facts, rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description="Encoders on one GPU, part by part.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="where the results go")
    parser.add_argument("--model", choices=MODELS, default="bert-base", help="of end-to-end and profile")
    parser.add_argument("--dataset", choices="ABCD", default="A", help="of end-to-end and profile; D is for modernbert-base")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each engine in each round of end-to-end")
    parser.add_argument("--rounds", type=int, default=3, help="of end-to-end")
    parser.add_argument("--commit", help="what is measured, where this is no checkout of git")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU")
    return parser


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _write(options: argparse.Namespace, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """As JSON, and as Markdown, which is printed too."""
    reporting = importlib.import_module("benchmarks.reporting")
    checks = importlib.import_module("benchmarks.gpu_checks")
    chosen = f"-{options.model}-{options.dataset}" if options.part in ("end-to-end", "profile") else ""
    name = f"{options.part}{chosen}" + ("-tiny" if options.tiny else "")
    facts = {
        "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}",
        "commit": options.commit or reporting.commit(),
        "date": reporting.date(),
        **checks.versions(options.device),
        **facts,
    }
    headers = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"# {name}", "\n".join(f"* {key}: {value}" for key, value in facts.items())]
    if rows:
        lines.append(reporting.table(headers, [[_shown(row.get(key)) for key in headers] for row in rows]))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    (options.out / f"{name}.md").write_text("\n\n".join(lines) + "\n")
    print("\n\n".join(lines), flush=True)


def _shown(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
