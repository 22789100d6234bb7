"""A look at the demo's second table: entities in news, sentiment of reviews, and how they score against gold.

python -m demo.labels [CONFIG] [KEY.PATH=VALUE ...]
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import open_output
from pipeline.config import load
from pipeline.evaluation import Question, evaluate_output

CORPUS = Path(__file__).parent / "corpus_zh"
STYLES = {"PER": "bold magenta", "LOC": "bold green", "ORG": "bold yellow"}
_CHARACTERS = 150
"""Of each example that is shown."""


def main() -> None:
    """Print the examples and the scores on standard output."""
    arguments = sys.argv[1:] or ["configs/demo_labels.yaml"]
    path = load(arguments[0], arguments[1:]).output.path
    rows = open_output(path).to_table(columns=["id", "n_tokens", "n_segments", "found", "sentiment", "label"])
    console = Console(highlight=False)
    console.print(news(rows))
    console.print(reviews(rows))
    console.print(scores(path))


def news(rows: pa.Table) -> Table:
    """Three documents from the line of their first entity on, entities marked."""
    texts = _texts(pq.read_table(CORPUS / "news.parquet", columns=["doc_id", "text"]).to_pylist())
    marks = ", ".join(f"[{style}]{label}[/]" for label, style in STYLES.items())
    table = _table(f"\nEntities in news of People's Daily ({marks})")
    for row in rows.filter(pc.is_in(rows["id"], pa.array(list(texts)))).slice(0, 3).to_pylist():
        first = row["found"][0]["start"] if row["found"] else 0
        start = texts[row["id"]].rfind("\n", 0, first) + 1
        size = f"{row['n_tokens']} tokens in {row['n_segments']} windows, {len(row['found'])} entities"
        stop = start + _CHARACTERS
        shown = f"{marked(texts[row['id']], row['found'], start, stop)} ...\n[dim]{names(row['found'], start, stop)}[/]"
        table.add_row(f"{row['id']}\n{size}", shown)
    return table


def marked(text: str, entities: list[dict[str, Any]], at: int, stop: int) -> str:
    """`text[at:stop]` with its entities in their colours, as Rich markup."""
    parts = []
    for entity in entities:
        if entity["start"] < at:
            continue
        if entity["end"] > stop:
            break
        inside = escape(text[entity["start"] : entity["end"]])
        parts += [escape(text[at : entity["start"]]), f"[{STYLES[entity['label']]}]{inside}[/]"]
        at = entity["end"]
    return "".join([*parts, escape(text[at:stop])])


def names(entities: list[dict[str, Any]], start: int, stop: int) -> str:
    """The entities between `start` and `stop` by label, as Rich markup; for screens without colours."""
    found = {
        label: dict.fromkeys(e["text"] for e in entities if e["label"] == label and start <= e["start"] < stop)
        for label in STYLES
    }
    return escape("; ".join(f"{label}: {', '.join(texts)}" for label, texts in found.items() if texts))


def reviews(rows: pa.Table) -> Table:
    """The two surest reviews of each label."""
    with gzip.open(CORPUS / "reviews.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = _texts([json.loads(line) for line in file])
    table = _table("\nSentiment of reviews")
    for label in ("positive", "negative"):
        chosen = pc.and_(
            pc.equal(pc.struct_field(rows["sentiment"], "label"), label), pc.is_in(rows["id"], pa.array(list(texts)))
        )
        surest = sorted(rows.filter(chosen).to_pylist(), key=lambda row: -row["sentiment"]["score"])
        for row in surest[:2]:
            table.add_row(f"{label}, {row['sentiment']['score']:.2f}", escape(texts[row["id"]][:_CHARACTERS]))
    return table


def scores(path: str) -> Table:
    """What `tidemill eval` says of both tasks."""
    entities = evaluate_output(path, Question(task="found", gold="entities")).as_dict()
    labels = evaluate_output(path, Question(task="sentiment", gold="label")).as_dict()
    table = _table("\nAgainst gold, which the models have not seen")
    by_label = ", ".join(f"{label} {figures['f1']:.2f}" for label, figures in entities["per_label"].items())
    table.add_row("entities", f"F1 {entities['overall']['micro_f1']:.3f} ({by_label}), {entities['rows']} documents")
    table.add_row("sentiment", f"accuracy {labels['overall']['accuracy']:.3f}, {labels['rows']} reviews")
    return table


def _texts(documents: list[dict[str, Any]]) -> dict[str, str]:
    return {str(document["doc_id"]): str(document["text"]) for document in documents}


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    return table


if __name__ == "__main__":
    main()
