"""Pictures of evaluations: what they hold, in both formats, whatever the labels are."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from jobs import chart
from operators.metrics import Scores
from pipeline.errors import ConfigError
from pipeline.evaluation import Evaluation

ODD = ["人名", "cost in $x^{2$", "_hidden", "two\nlines", "\U0001f600", "a label that is much too long for a picture", "<b>&"]


def evaluation(metric: str, labels: list[str], confusion: bool = False) -> Evaluation:
    per_label = {label: {"f1": i / len(labels), "support": i} for i, label in enumerate(labels)}
    cells = {label: {labels[0]: 3, label: 4} for label in labels} if confusion else None
    return Evaluation("任务", metric, 10, 0, 0, Scores({}, per_label, cells))


def texts(file: Path) -> list[str]:
    """The text elements of an SVG."""
    return [element.text or "" for element in ET.parse(file).iter() if element.tag.endswith("}text")]


@pytest.mark.parametrize("suffix", chart.FORMATS)
def test_odd_labels_are_drawn_without_a_warning(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"picture{suffix}"
    chart.draw(evaluation("classification", ODD, confusion=True), file)
    start = file.read_bytes()[:8]
    assert start.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG\r\n\x1a\n")


def test_an_svg_holds_labels_as_text_and_the_counts(tmp_path: Path) -> None:
    chart.draw(evaluation("classification", ODD, confusion=True), tmp_path / "picture.svg")
    found = texts(tmp_path / "picture.svg")
    assert {
        "任务: classification, 10 rows",
        "人名",
        "人名 (0)",
        "cost in $x^{2$",
        "two\\nlines",
        "a label that is much ...",
        "<b>&",
        "confusion",
    } <= set(found)
    assert found.count("3") == len(ODD) - 1


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        chart.draw(evaluation("classification", ODD, confusion=True), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_of_many_labels_the_most_frequent_are_shown(tmp_path: Path) -> None:
    labels = [f"label-{i:03}" for i in range(100)]
    chart.draw(evaluation("entities", labels), tmp_path / "picture.svg")
    found = texts(tmp_path / "picture.svg")
    assert "labels (support), the 40 most frequent of 100" in found
    assert [text for text in found if text.startswith("label-")] == [f"label-{i:03} ({i})" for i in range(60, 100)]


def test_retrieval_is_a_curve_over_k(tmp_path: Path) -> None:
    overall = {"recall@1": 0.25, "recall@10": 0.5, "mrr": 0.4, "ndcg@10": 0.45}
    chart.draw(Evaluation("vector", "retrieval", 10, 0, 0, Scores(overall)), tmp_path / "picture.svg")
    assert {"0.250", "0.500", "MRR 0.400, nDCG@10 0.450", "k", "recall@k"} <= set(texts(tmp_path / "picture.svg"))


def test_figures_without_labels_have_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no picture for regression"):
        chart.draw(Evaluation("score", "regression", 10, 0, 0, Scores({"mse": 0.0})), tmp_path / "picture.svg")


def test_files_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'picture.pdf' ends in neither \.svg nor \.png"):
        chart.check(tmp_path / "picture.pdf")
    with pytest.raises(ConfigError, match="there is no folder"):
        chart.check(tmp_path / "nowhere" / "picture.svg")
    chart.check(tmp_path / "picture.svg")
