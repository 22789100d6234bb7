"""The carried models are what demo/models/README.md says: they load as they are, and find what their metrics.json states."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from demo.people_daily import LABELS, Sentence, bio, joined, scores, sentences, spans

DEMO = Path(__file__).resolve().parents[1] / "demo"
NER = DEMO / "models/zh-ner"
SENTIMENT = DEMO / "models/zh-sentiment"


def metrics(model: Path) -> dict[str, Any]:
    """What the training script stored."""
    return json.loads((model / "metrics.json").read_text())


@pytest.fixture(scope="module")
def news() -> list[Sentence]:
    """Every fourth sentence of the carried documents, with spans of its own."""
    found = []
    for row in pq.read_table(DEMO / "corpus_zh/news.parquet").to_pylist():
        for span in row["sentences"][::4]:
            start, end = span["start"], span["end"]
            inside = [entity for entity in row["entities"] if start <= entity["start"] < end]
            entities = tuple((entity["start"] - start, entity["end"] - start, entity["label"]) for entity in inside)
            found.append(Sentence(row["text"][start:end], entities))
    return found


@pytest.fixture(scope="module")
def reviews() -> list[dict[str, str]]:
    """The carried reviews."""
    with gzip.open(DEMO / "corpus_zh/reviews.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_entities_are_found_as_stated(news: list[Sentence]) -> None:
    model = AutoModelForTokenClassification.from_pretrained(NER).eval()
    tokenizer = AutoTokenizer.from_pretrained(NER)
    assert [model.config.id2label[index] for index in range(model.config.num_labels)] == list(LABELS)
    predicted = []
    for row in news:
        batch = tokenizer(row.text, return_offsets_mapping=True, return_tensors="pt")
        offsets = [tuple(pair) for pair in batch.pop("offset_mapping")[0, 1:-1].tolist()]
        with torch.inference_mode():
            labels = model(**batch).logits[0, 1:-1].argmax(-1).tolist()
        predicted.append(spans(labels, offsets))
    found = scores(predicted, [row.entities for row in news])
    stated = metrics(NER)["test_f1"]
    assert found["micro"] == pytest.approx(stated["micro"], abs=0.02)
    assert stated["micro"] >= 0.85
    assert metrics(NER)["test_f1_in_runs"]["micro"] == pytest.approx(stated["micro"], abs=0.02)


def test_the_sentiment_is_found_as_stated(reviews: list[dict[str, str]]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(SENTIMENT).eval()
    tokenizer = AutoTokenizer.from_pretrained(SENTIMENT)
    right = 0
    for first in range(0, len(reviews), 50):
        rows = reviews[first : first + 50]
        batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            labels = model(**batch).logits.argmax(-1).tolist()
        right += sum(model.config.id2label[label] == row["label"] for label, row in zip(labels, rows, strict=True))
    stated = metrics(SENTIMENT)["test"]["accuracy"]
    assert right / len(reviews) == pytest.approx(stated, abs=0.03)
    assert stated >= 0.8


@pytest.mark.parametrize("model", [NER, SENTIMENT], ids=lambda model: model.name)
def test_a_model_is_small_and_holds_no_pickle(model: Path) -> None:
    files = {path.name: path.stat().st_size for path in model.iterdir()}
    assert set(files) == {"config.json", "metrics.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files["model.safetensors"] < 4_100_000


def test_the_table_agrees_with_the_metrics() -> None:
    lines = (DEMO / "models/README.md").read_text().splitlines()
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    for name, key in (("`test_f1`", "test_f1"), ("`test_f1_in_runs`", "test_f1_in_runs")):
        assert [float(cell) for cell in rows[name]] == [metrics(NER)[key][kind] for kind in ("PER", "LOC", "ORG", "micro")]
    found = metrics(SENTIMENT)["test"]
    assert [float(cell) for cell in rows["`test`"]] == [found[key] for key in ("accuracy", "negative_f1", "positive_f1")]
    commands = re.findall(r"`(python -m demo\.train_\w+[^`]*)`", "\n".join(lines))
    assert commands == [metrics(NER)["command"], metrics(SENTIMENT)["command"]]


def test_the_news_holds_its_spans() -> None:
    rows = pq.read_table(DEMO / "corpus_zh/news.parquet").to_pylist()
    assert len({row["doc_id"] for row in rows}) == len(rows) >= 30
    for row in rows:
        ends = [0, *(span["end"] for span in row["sentences"])]
        gaps = [row["text"][end : span["start"]] for end, span in zip(ends, row["sentences"], strict=False)]
        assert set(gaps) <= {"", "\n"}
        assert all(0 <= entity["start"] < entity["end"] <= len(row["text"]) for entity in row["entities"])
        assert not any("\n" in row["text"][entity["start"] : entity["end"]] for entity in row["entities"])


def test_the_corpus_stays_small() -> None:
    assert all(path.stat().st_size < 400_000 for path in (DEMO / "corpus_zh").iterdir())


def test_words_and_tags_become_sentences() -> None:
    stop = "\u3002"
    line = f"Li/nr  Peng/nr  met/v  Ann/nr  ,/w  Bob/nr  in/p  Xi'an/ns  with/p  UN/nt  {stop}/w  end/n"
    first, second = sentences(line)
    assert first.text == f"LiPengmetAnn,BobinXi'anwithUN{stop}"
    assert [(first.text[start:stop], kind) for start, stop, kind in first.entities] == [
        ("LiPeng", "PER"),
        ("Ann", "PER"),
        ("Bob", "PER"),
        ("Xi'an", "LOC"),
        ("UN", "ORG"),
    ]
    assert second == Sentence("end", ())
    both = joined([first, second, first], separator="\n")
    assert [both.text[start:stop] for start, stop, _ in both.entities] == ["LiPeng", "Ann", "Bob", "Xi'an", "UN"] * 2


@st.composite
def marked(draw: st.DrawFn) -> tuple[list[tuple[int, int, str]], int]:
    """Entities that do not overlap, and the length of their text."""
    cuts = sorted(draw(st.sets(st.integers(0, 40))))
    pairs = itertools.pairwise(cuts)
    chosen = [(start, stop, draw(st.sampled_from(["PER", "LOC", "ORG"]))) for start, stop in pairs if draw(st.booleans())]
    return chosen, 40


@given(marked())
def test_entities_survive_their_labels(case: tuple[list[tuple[int, int, str]], int]) -> None:
    entities, length = case
    labels = bio(entities, length)
    assert spans(labels, [(index, index + 1) for index in range(length)]) == entities
    assert scores([entities], [entities])["micro"] == (1.0 if entities else 0.0)


def test_scores_count_exact_spans() -> None:
    gold = [[(0, 2, "PER"), (3, 5, "LOC")], [(0, 1, "ORG")]]
    predicted = [[(0, 2, "PER"), (3, 4, "LOC"), (6, 7, "LOC")], []]
    assert scores(predicted, gold) == {"PER": 1.0, "LOC": 0.0, "ORG": 0.0, "micro": 0.3333}


def test_an_i_without_its_b_begins_an_entity() -> None:
    labels = [LABELS.index(label) for label in ("I-PER", "I-PER", "I-LOC", "O", "I-LOC", "B-LOC")]
    assert spans(labels, [(index, index + 1) for index in range(6)]) == [
        (0, 2, "PER"),
        (2, 3, "LOC"),
        (4, 5, "LOC"),
        (5, 6, "LOC"),
    ]
