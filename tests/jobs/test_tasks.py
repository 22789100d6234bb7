"""Several tasks in one job: one read, one tokenization for each tokenizer, one encoder pass for each model; named failures."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline import open_output
from pipeline.config import from_dict
from pipeline.flow import run
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


def _job(folder: Path, output: str, tasks: dict[str, Any]) -> dict[str, Any]:
    return run(
        from_dict(
            {
                "input": {"path": str(folder / "in")},
                "segments": {"overlap": 6},
                "tasks": tasks,
                "output": {"path": str(folder / output)},
                "runtime": {"engine": "local", "device": "cpu"},
            }
        )
    )


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


def test_a_row_is_set_aside_with_the_name_of_the_task_that_failed(tmp_path: Path, models: dict[str, Path]) -> None:
    rows = write_corpus(tmp_path / "in", shards=1, rows=6)
    large = tiny_sentence_transformer(tmp_path / "large", max_seq_length=32, normalize=False, layer_norm=True)
    weights = load_file(large / "3_LayerNorm" / "model.safetensors")
    save_file({name: value * 1e6 for name, value in weights.items()}, large / "3_LayerNorm" / "model.safetensors")
    tasks = {
        "fine": {"head": "embedding", "model": str(large)},
        "half": {"head": "embedding", "model": str(large), "dtype": "float16"},
    }
    done = _job(tmp_path, "out", tasks)
    assert done["statistics"]["encoder_passes"] == done["pieces"]  # both heads share one pass
    assert done["books"]["quarantined"] == {"task_failed:half": rows}
    assert done["books"]["rows_out"] == 0
