"""Entities of long documents against those of their single sentences, for Tidemill and for transformers' pipeline with stride.

    python -m benchmarks.ner [--model demo/models/zh-ner] [--documents 34]

The documents of demo/corpus_zh/news.parquet have about 5,000 characters. The same model reads each of their sentences alone;
what it finds there is what windows over the whole document should find again. Prints one JSON object: for each size of window,
precision, recall and F1 of each method against the single sentences, and its F1 against gold.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from transformers import pipeline
from transformers.utils import logging

import tidemill
from operators import metrics
from operators.entities import ITEM

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ROOT / "demo/corpus_zh/news.parquet"
MODEL = ROOT / "demo/models/zh-ner"
app = typer.Typer(add_completion=False)

Items = list[dict[str, Any]]


def overlap(max_tokens: int) -> int:
    """Body tokens that windows share, as `overlap: auto` chooses."""
    return min(64, (max_tokens - 2) // 4)


def by_tidemill(texts: list[str], model: Path, max_tokens: int, **settings: Any) -> list[Items]:
    """The entities of each text, by a whole job of the local engine."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": texts}), f"{folder}/texts.parquet")
        config = {
            "input": {"path": f"{folder}/texts.parquet"},
            "segments": {"max_tokens": max_tokens, "overlap": overlap(max_tokens)},
            "tasks": {"entities": {"head": "token_classification", "model": str(model), **settings}},
            "output": {"path": f"{folder}/table"},
            "runtime": {"engine": "local", "device": "cpu", "precision": "fp32"},
        }
        tidemill.run(tidemill.from_dict(config))
        table = tidemill.open_output(f"{folder}/table").to_table(columns=["_row", "entities"]).sort_by("_row")
    entities: list[Items] = table["entities"].to_pylist()
    return entities


def by_pipeline(texts: list[str], model: Path, max_tokens: int, stride: int) -> list[Items]:
    """The same by transformers' pipeline."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    tag: Any = pipeline("token-classification", model=str(model), device="cpu", aggregation_strategy="first", stride=stride)
    tag.tokenizer.model_max_length = max_tokens
    keys = {"start": "start", "end": "end", "label": "entity_group"}
    return [[{key: item[theirs] for key, theirs in keys.items()} for item in tag(text, batch_size=16)] for text in texts]


def by_sentence(documents: list[dict[str, Any]], model: Path, max_tokens: int) -> list[Items]:
    """The entities that Tidemill finds in each sentence alone, by their places in the documents."""
    spans = [(number, s["start"], s["end"]) for number, d in enumerate(documents) for s in d["sentences"]]
    found = by_tidemill([documents[number]["text"][start:end] for number, start, end in spans], model, max_tokens)
    placed: list[Items] = [[] for _ in documents]
    for (number, start, _), items in zip(spans, found, strict=True):
        placed[number] += [{**item, "start": item["start"] + start, "end": item["end"] + start} for item in items]
    return placed


def compare(found: list[Items], wanted: list[Items]) -> metrics.Figures:
    """Precision, recall and F1 of exact entities over all documents."""
    overall = metrics.entities(pa.array(wanted, pa.list_(ITEM)), pa.array(found, pa.list_(ITEM))).overall
    return {name: overall[f"micro_{name}"] for name in ("precision", "recall", "f1")}


def measure(model: Path, documents: list[dict[str, Any]], sizes: tuple[int, ...]) -> dict[str, Any]:
    """The figures for windows of each of `sizes` tokens."""
    texts = [document["text"] for document in documents]
    gold = [document["entities"] for document in documents]
    single = by_sentence(documents, model, 512)
    figures: dict[str, Any] = {"documents": len(texts), "single sentences": {"gold f1": compare(single, gold)["f1"]}}
    for size in sizes:
        methods = {
            "tidemill": by_tidemill(texts, model, size),
            "pipeline": by_pipeline(texts, model, size, overlap(size)),
            "pipeline, stride 0": by_pipeline(texts, model, size, 0),
        }
        figures[f"windows of {size}"] = {
            name: {**compare(found, single), "gold f1": compare(found, gold)["f1"]} for name, found in methods.items()
        }
    return figures


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="directory of a model for token classification")] = MODEL,
    documents: Annotated[int, typer.Option(help="how many of the documents")] = 1000,
) -> None:
    """Measure and print."""
    rows = pq.read_table(DOCUMENTS).slice(0, documents).to_pylist()
    print(json.dumps(measure(model, rows, (64, 128, 256, 512)), indent=2))


if __name__ == "__main__":
    app()
