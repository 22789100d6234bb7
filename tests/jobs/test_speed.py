"""What a run does to be fast, and what it says of its speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators import precision
from operators.heads.embedding import Head
from pipeline import open_output
from pipeline.config import Config, from_dict
from pipeline.errors import Held
from pipeline.flow import run
from pipeline.planning import make_plan
from tests.jobs.conftest import text
from tests.tiny import tiny_sentence_transformer, tiny_task

SPEED = {
    "documents_per_second",
    "tokens_per_second",
    "warm_tokens_per_second",
    "padding_share",
    "idle_share",
    "prepare_share",
    "mfu",
    "cost_per_million_documents",
}


def _config(folder: Path, model: Path, output: str = "out", **runtime: Any) -> Config:
    return from_dict(
        {
            "input": {"path": str(folder / "in"), "piece": "1KiB"},
            "segments": {"overlap": 6},
            "tasks": {"vector": {"head": "embedding", "model": str(model)}},
            "output": {"path": str(folder / output)},
            "runtime": {"engine": "local", "device": "cpu", **runtime},
        }
    )


def _write(folder: Path, texts: list[str], row_group_size: int = 1000) -> None:
    (folder / "in").mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "in" / "a.parquet", row_group_size=row_group_size)


def test_the_same_text_is_encoded_once_in_a_piece(tmp_path: Path, tiny_model: Path) -> None:
    different = [text(seed, 10 * seed) for seed in range(4)]
    order = np.random.default_rng(0).integers(0, 4, 60).tolist()
    _write(tmp_path, [different[i] for i in order])
    config = _config(tmp_path, tiny_model)
    done = run(from_dict(config.to_dict(), ["input.piece=auto"]))
    counts = done["statistics"]
    assert counts["duplicates"] == 56
    vectors = np.array(open_output(str(tmp_path / "out")).to_table()["vector"].to_pylist())
    once = np.array([vectors[order.index(i)] for i in range(4)])
    np.testing.assert_array_equal(vectors, once[order])
    assert len(np.unique(once, axis=0)) == 4
    # As many tokens as the four have alone.
    (tmp_path / "in" / "a.parquet").unlink()
    pq.write_table(pa.table({"text": different}), tmp_path / "in" / "b.parquet")
    alone = run(_config(tmp_path, tiny_model, "alone"))
    assert counts["tokens"] == alone["tokens"]
    found = np.array(open_output(str(tmp_path / "alone")).to_table()["vector"].to_pylist())
    np.testing.assert_allclose(once, found, rtol=0, atol=2e-6)


def test_copies_of_a_text_share_entities_and_failures(tmp_path: Path) -> None:
    model = tiny_task(
        tmp_path / "model", "TokenClassification", max_positions=32, num_labels=3, id2label={0: "O", 1: "B-A", 2: "I-A"}
    )
    long = text(1, 40)
    _write(tmp_path, [long, "river moon", long, long, "river moon", ""])
    tasks = {"entities": {"head": "token_classification", "model": str(model)}}
    raw = {"input": {"path": str(tmp_path / "in")}, "tasks": tasks, "output": {"path": str(tmp_path / "out")}}
    done = run(
        from_dict({**raw, "segments": {"overlap": 4}, "runtime": {"engine": "local", "device": "cpu", "parity_sample": 6}})
    )
    assert done["statistics"]["duplicates"] == 3
    assert done["parity"]["entities"] == {"documents": 6, "apart": 0, "similarity": 1.0}
    found = open_output(str(tmp_path / "out")).to_table()["entities"].to_pylist()
    assert found[0] == found[2] == found[3]
    assert found[1] == found[4]
    assert found[5] == []
    assert all(long[e["start"] : e["end"]] == e["text"] for e in found[0])
    error = from_dict({**raw, "segments": {"policy": "error"}, "runtime": {"engine": "local", "device": "cpu"}})
    books = run(from_dict({**error.to_dict(), "output": {"path": str(tmp_path / "strict")}}))["books"]
    assert (books["rows_in"], books["rows_out"], books["quarantined"]) == (6, 3, {"too_long": 3})


def test_a_document_that_fails_takes_its_copies_with_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["river", "moon river", "river", "garden", "moon river"]
    _write(tmp_path, texts)
    score = Head.score

    def fail(self: Head, hidden: Any, pack: Any, inputs: Any) -> Any:
        if 4 in pack.lengths.tolist():  # two tokens and the special ones
            raise RuntimeError("no")
        return score(self, hidden, pack, inputs)

    monkeypatch.setattr(Head, "score", fail)
    books = run(_config(tmp_path, tiny_model))["books"]
    assert books["quarantined"] == {"task_failed:vector": 2}
    rows = open_output(str(tmp_path / "out")).to_table()["_row"].to_pylist()
    assert rows == [0, 2, 3]


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, ["river"] * 3)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("weights are missing")

    monkeypatch.setattr("operators.encoders.torch.load", fail)
    with pytest.raises(ValueError, match="weights are missing"):
        run(_config(tmp_path, tiny_model))


def test_a_duplicate_beside_another_question_is_not_the_same(tmp_path: Path) -> None:
    model = tiny_task(tmp_path / "model", "SequenceClassification", max_positions=64, num_labels=1)
    (tmp_path / "in").mkdir()
    rows = [{"text": "river moon", "other": other} for other in ("moon", "river river river", "moon")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    tasks = {"score": {"head": "pair_score", "model": str(model), "text_pair": "other"}}
    raw = {"input": {"path": str(tmp_path / "in")}, "tasks": tasks, "output": {"path": str(tmp_path / "out")}}
    done = run(from_dict({**raw, "runtime": {"engine": "local", "device": "cpu"}}))
    scores = open_output(str(tmp_path / "out")).to_table()["score"].to_pylist()
    assert "duplicates" not in done["statistics"]
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert abs(scores[0] - scores[1]) > 1e-6


def test_the_report_says_how_fast_it_was(tmp_path: Path, tiny_model: Path) -> None:
    _write(tmp_path, [text(seed, 100) for seed in range(40)], row_group_size=4)
    done = run(_config(tmp_path, tiny_model, price_per_hour=3.6))
    speed = done["speed"]
    assert done["pieces"] > 2
    assert set(speed) == SPEED
    assert all(speed[name] is not None for name in SPEED)
    assert speed["tokens_per_second"] == done["tokens_per_second"]
    assert speed["padding_share"] == 0
    assert all(0 <= speed[name] <= 1 for name in ("idle_share", "prepare_share"))
    assert 0 < speed["mfu"] < 1.5  # the peak too is measured, on a machine that is shared
    again = run(_config(tmp_path, tiny_model))
    assert again["encoded"] == 0
    assert all(value is None for name, value in again["speed"].items() if name.endswith(("share", "mfu", "documents")))


def test_a_padded_family_says_what_it_pads(tmp_path: Path) -> None:
    model = tiny_sentence_transformer(tmp_path / "model", model_type="mpnet", max_seq_length=32)
    _write(tmp_path, [text(seed, seed) for seed in range(20)])
    assert 0 < run(_config(tmp_path, model))["speed"]["padding_share"] < 1


def test_auto_precision_keeps_the_similarity_that_is_asked_for(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measure_peak", lambda kind, name: 2e11 if name == "bf16" else 1e11)
    _write(tmp_path, [text(seed, 30) for seed in range(20)])
    assert make_plan(_config(tmp_path, tiny_model)).precision == "fp32"
    assert make_plan(_config(tmp_path, tiny_model, precision_similarity=0.99999)).precision == "fp32"
    plan = make_plan(_config(tmp_path, tiny_model, precision_similarity=0.99))
    assert (plan.precision, plan.recipe.parity_sample, plan.recipe.tolerance.similarity) == ("bf16", 32, 0.99)
    assert "GFLOP/s" in plan.reasons["precision"]
    done = run(_config(tmp_path, tiny_model, precision_similarity=0.99))
    assert done["parity"]["vector"]["documents"] == 20
    assert done["parity"]["vector"]["similarity"] > 0.9998


def test_what_loses_more_is_held(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure_peak", lambda kind, name: 2e11 if name == "bf16" else 1e11)
    monkeypatch.setattr(precision, "HALF_SIMILARITY", 1.0)
    _write(tmp_path, [text(seed, 30) for seed in range(20)])
    with pytest.raises(Held, match="20 of 20 documents"):
        run(_config(tmp_path, tiny_model, precision_similarity=1.0))
