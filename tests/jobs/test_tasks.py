"""Several tasks in one job: one read, one tokenization for each tokenizer, one encoder pass for each model; named failures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from operators.segmentation import Windowing, segment
from pipeline import open_output
from pipeline.config import Config, from_dict
from pipeline.errors import ConfigError, Incomplete
from pipeline.estimate import estimate
from pipeline.flow import run
from pipeline.planning import make_plan
from tests.jobs.conftest import write_corpus
from tests.tiny import tiny_sentence_transformer, tiny_task

_opened: Counter[str] = Counter()
_watching: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching and str(arguments[0]).startswith(_watching[0]):
        _opened[Path(str(arguments[0])).name] += 1


sys.addaudithook(_audit)


@contextmanager
def opened(folder: Path) -> Iterator[Counter[str]]:
    """Counts how often Python opens each file in `folder`; an audit hook cannot be taken away, but it can rest."""
    _opened.clear()
    _watching[:] = [str(folder)]
    try:
        yield _opened
    finally:
        _watching.clear()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two embedding models with one tokenizer, one with another, and a classifier."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: tiny_sentence_transformer(folder / name, max_seq_length=32, seed=i) for i, name in enumerate(("one", "two"))}
    made["other"] = tiny_sentence_transformer(folder / "other", model_type="roberta", max_seq_length=32)
    labels = {"id2label": {0: "sea", 1: "land"}}
    made["classifier"] = tiny_task(folder / "classifier", "SequenceClassification", max_positions=32, num_labels=2, **labels)
    return made


def _config(folder: Path, output: str, tasks: dict[str, Any], **settings: Any) -> Config:
    return from_dict(
        {
            "input": {"path": str(folder / "in"), **settings},
            "segments": {"overlap": 6},
            "tasks": tasks,
            "output": {"path": str(folder / output)},
            "runtime": {"engine": "local", "device": "cpu"},
        }
    )


def _job(folder: Path, output: str, tasks: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return run(_config(folder, output, tasks, **settings))


def test_three_tasks_on_two_models_read_once_and_pass_twice(tmp_path: Path, models: dict[str, Path]) -> None:
    write_corpus(tmp_path / "in", shards=3, rows=12)
    embedding = {"head": "embedding", "model": str(models["one"])}
    with opened(tmp_path / "in") as alone:
        first = _job(tmp_path, "alone", {"vector": embedding})
        single = dict(alone)
    tasks = {
        "vector": embedding,
        "label": {"head": "sequence_classification", "model": str(models["classifier"])},
        "small": {**embedding, "dim": 8},
    }
    with opened(tmp_path / "in") as together:
        done = _job(tmp_path, "together", tasks)
        assert dict(together) == single  # not one more read of any shard
    assert len(single) == 3
    counts = done["statistics"]
    assert counts["reads"] == done["pieces"]
    assert counts["tokenizations"] == done["pieces"]  # both models have one tokenizer
    assert counts["encoder_passes"] == 2 * done["pieces"]
    assert counts["tokens"] == 2 * first["statistics"]["tokens"]

    table = open_output(str(tmp_path / "together")).to_table()
    lone = open_output(str(tmp_path / "alone")).to_table()
    whole = np.array(table["vector"].to_pylist())
    np.testing.assert_allclose(whole, np.array(lone["vector"].to_pylist()), rtol=0, atol=2e-6)
    small = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(table["small"].to_pylist()), small, rtol=0, atol=2e-6)
    assert {value["label"] for value in table["label"].to_pylist()} <= {"sea", "land"}


def test_tokenizers_and_prompts_that_differ_are_tokenized_apart(tmp_path: Path, models: dict[str, Path]) -> None:
    write_corpus(tmp_path / "in", shards=1, rows=6)
    tasks = {
        "a": {"head": "embedding", "model": str(models["one"])},
        "b": {"head": "embedding", "model": str(models["two"])},
        "c": {"head": "embedding", "model": str(models["other"])},
        "d": {"head": "embedding", "model": str(models["one"]), "prompt": "query: "},
    }
    done = _job(tmp_path, "out", tasks)
    assert done["statistics"]["tokenizations"] == 3 * done["pieces"]
    assert done["statistics"]["encoder_passes"] == 4 * done["pieces"]
    names = open_output(str(tmp_path / "out")).schema.names
    assert "b_n_tokens" not in names  # as the first task's
    assert {"c_n_tokens", "d_n_segments"} <= set(names)


def test_full_and_top_k_attention_of_one_model_side_by_side(tmp_path: Path, models: dict[str, Path]) -> None:
    write_corpus(tmp_path / "in", shards=2, rows=9)
    full = {"head": "embedding", "model": str(models["one"])}
    k = 2
    alone = _job(tmp_path, "alone", {"full": full})
    assert alone["activation_ratio"] is None
    tasks = {
        "full": full,
        "sparse": {**full, "attention": {"kind": "topk", "k": k}},
        "whole": {**full, "attention": {"kind": "topk", "k": 32}},
    }
    compared = ["runtime.parity_sample=6", "runtime.parity_apart=1"]
    done = run(from_dict(_config(tmp_path, "both", tasks).to_dict(), compared))
    counts = done["statistics"]
    assert counts["tokenizations"] == done["pieces"]
    assert counts["encoder_passes"] == 3 * done["pieces"]
    # The reference has full attention, so that what two keys cost shows.
    assert done["parity"]["full"]["apart"] == done["parity"]["whole"]["apart"] == 0
    assert done["parity"]["full"]["similarity"] == pytest.approx(1, abs=1e-5)
    assert done["parity"]["sparse"]["apart"] > 0

    table = open_output(str(tmp_path / "both")).to_table()
    lone = open_output(str(tmp_path / "alone")).to_table()
    vectors = {name: np.array(table[name].to_pylist()) for name in tasks}
    np.testing.assert_allclose(vectors["full"], np.array(lone["full"].to_pylist()), rtol=0, atol=2e-6)
    np.testing.assert_allclose(vectors["whole"], vectors["full"], rtol=0, atol=2e-6)
    assert np.abs(vectors["sparse"] - vectors["full"]).max() > 0.01

    windows = segment(np.array(table["n_tokens"].to_pylist()), Windowing(30, 6)).length + 2
    kept = sum(n * min(n, k) + n * n for n in windows.tolist())
    assert done["activation_ratio"] == pytest.approx(kept / sum(2 * n * n for n in windows.tolist()), rel=1e-9)


def test_a_row_is_set_aside_with_the_name_of_the_task_that_failed(tmp_path: Path, models: dict[str, Path]) -> None:
    rows = write_corpus(tmp_path / "in", shards=1, rows=6)
    large = tiny_sentence_transformer(tmp_path / "large", max_seq_length=32, normalize=False, layer_norm=True)
    weights = load_file(large / "3_LayerNorm" / "model.safetensors")
    save_file({name: value * 1e6 for name, value in weights.items()}, large / "3_LayerNorm" / "model.safetensors")
    tasks = {
        "fine": {"head": "embedding", "model": str(large)},
        "half": {"head": "embedding", "model": str(large), "dtype": "float16"},
    }
    with pytest.raises(Incomplete, match=f"{rows} of {rows} rows .* are in quarantine: {rows} task_failed:half"):
        _job(tmp_path, "out", tasks)
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "_records").rglob("*.json")]
    assert records
    assert all(record["statistics"]["encoder_passes"] == 1 for record in records)  # both heads share one pass


def test_second_texts_keep_their_token_types_beside_a_tokenizer_without_them(tmp_path: Path) -> None:
    # DistilBERT's tokenizer cuts texts as BERT's does, but knows no token types.
    _write(tmp_path, [{"text": "the king of the sea", "other": "a dog"}])
    pair = {
        "head": "pair_score",
        "model": str(tiny_task(tmp_path / "bert", "SequenceClassification", num_labels=1)),
        "text_pair": "other",
    }
    vector = {"head": "embedding", "model": str(tiny_sentence_transformer(tmp_path / "distil", model_type="distilbert"))}
    scores = []
    for number, tasks in enumerate([{"pair": pair}, {"vector": vector, "pair": pair}, {"pair": pair, "vector": vector}]):
        _job(tmp_path, str(number), tasks)
        scores.append(open_output(str(tmp_path / str(number))).to_table()["pair"][0].as_py())
    assert scores[1:] == pytest.approx([scores[0]] * 2, abs=1e-6)


def test_a_task_may_have_the_name_of_the_column_that_its_head_reads(tmp_path: Path) -> None:
    _write(tmp_path, [{"text": "the king", "choices": ["sea", "a dog"]}])
    model = str(tiny_task(tmp_path / "model", "MultipleChoice"))
    done = _job(tmp_path, "out", {"choices": {"head": "multiple_choice", "model": model, "choices": "choices"}})
    assert done["books"]["rows_out"] == 1
    assert open_output(str(tmp_path / "out")).to_table()["choices"][0].as_py()["choice"] in (0, 1)


@pytest.mark.parametrize("column", ["id", "_row", "__text"])
def test_columns_of_our_own_are_refused_to_heads(column: str, tmp_path: Path) -> None:
    _write(tmp_path, [{"text": "the king"}])
    model = str(tiny_task(tmp_path / "model", "QuestionAnswering"))
    with pytest.raises(ConfigError, match="whose name is taken"):
        _job(tmp_path, "out", {"answer": {"head": "question_answering", "model": model, "question_column": column}})


def test_kept_columns_named_like_counts_stay_as_they_are(tmp_path: Path, models: dict[str, Path]) -> None:
    _write(tmp_path, [{"text": "the king", "v_n_tokens": 999, "v_truncated": True}])
    _job(tmp_path, "out", {"v": {"head": "embedding", "model": str(models["one"])}}, keep=["v_n_tokens", "v_truncated"])
    row = open_output(str(tmp_path / "out")).to_table().drop_columns(["v"]).to_pylist()[0]
    assert (row["v_n_tokens"], row["v_truncated"], row["n_tokens"], row["truncated"]) == (999, True, 2, False)


def test_a_kept_column_may_have_the_name_of_a_former_task(tmp_path: Path, models: dict[str, Path]) -> None:
    _write(tmp_path, [{"text": "the king", "label": "gold"}])
    task = {"head": "sequence_classification", "model": str(models["classifier"])}
    _job(tmp_path, "out", {"label": task})
    assert _job(tmp_path, "out", {"topic": task}, keep=["label"])["books"]["quarantined"] == {}
    assert open_output(str(tmp_path / "out")).to_table()["label"].to_pylist() == ["gold"]


def test_a_column_that_no_jsonl_shard_has_is_refused_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "the king", "question": "who"}\n')
    model = str(tiny_task(tmp_path / "model", "QuestionAnswering"))
    with pytest.raises(ConfigError, match=r"tasks\.answer: no shard has a column 'questions'; did you mean 'question'"):
        _job(tmp_path, "out", {"answer": {"head": "question_answering", "model": model, "question_column": "questions"}})


def test_the_plan_counts_the_tokens_of_all_passes(tmp_path: Path, models: dict[str, Path]) -> None:
    _write(tmp_path, [{"text": "the king of the sea " * n, "choices": ["sea"] * (1 + n % 3)} for n in range(20)])
    choice = {"head": "multiple_choice", "model": str(tiny_task(tmp_path / "model", "MultipleChoice")), "choices": "choices"}
    tasks = {"vector": {"head": "embedding", "model": str(models["one"])}, "choice": choice}
    planned = estimate(make_plan(_config(tmp_path, "out", tasks)))["estimate"]
    done = _job(tmp_path, "out", tasks)
    assert planned["tokens_to_do"] == done["tokens"]
    assert planned["segments"] == done["statistics"]["segments"]


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "in" / "a.parquet")
