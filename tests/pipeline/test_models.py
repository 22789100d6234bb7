"""Models, heads and windows as planning sees them: what is shared, what is noted, what is refused with its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import from_dict
from pipeline.errors import ConfigError
from pipeline.estimate import estimate
from pipeline.planning import Plan, make_plan
from tests.head_cases import case_model
from tests.tiny import tiny_encoder, tiny_sentence_transformer


def plan(folder: Path, tasks: dict[str, Any], **sections: Any) -> Plan:
    """The plan over two documents with their questions."""
    (folder / "in").mkdir(exist_ok=True)
    table = pa.table({"text": ["moon", "sun"], "question": ["who", None], "number": [1, 2]})
    pq.write_table(table, folder / "in" / "a.parquet")
    config: dict[str, Any] = {
        "input": {"path": str(folder / "in")},
        "tasks": tasks,
        "output": {"path": str(folder / "out")},
        "runtime": {"engine": "local", "device": "cpu"},
    }
    return make_plan(from_dict({name: config.get(name, {}) | sections.get(name, {}) for name in {*config, *sections}}))


def test_a_family_that_cannot_run_packed_is_noted(tmp_path: Path) -> None:
    packed = tiny_encoder(tmp_path / "bert", model_type="bert")
    padded = tiny_encoder(tmp_path / "mpnet", model_type="mpnet")
    tasks = {name: {"head": "embedding", "model": str(path)} for name, path in (("a", packed), ("b", padded))}
    notes = estimate(plan(tmp_path, tasks))["notes"]
    assert [note for note in notes if "padded" in note] == ["tasks.b: mpnet runs padded: its modules take no attention function"]


def test_equal_tokenizers_of_two_models_are_shared(tmp_path: Path) -> None:
    tasks = {
        str(seed): {"head": "embedding", "model": str(tiny_sentence_transformer(tmp_path / str(seed), seed=seed))}
        for seed in (0, 1)
    }
    recipe = plan(tmp_path, tasks).recipe
    assert len(recipe.tokenizations) == len(recipe.views) == 1
    assert len(recipe.passes) == 2


def test_one_model_under_two_heads_is_one_pass_and_another_window_is_not(tmp_path: Path) -> None:
    model = str(case_model(tmp_path / "model", "token_classification"))
    tasks = {
        "found": {"head": "token_classification", "model": model},
        "vector": {"head": "embedding", "model": model},
        "apart": {"head": "embedding", "model": model, "segments": {"max_tokens": 20}},
    }
    made = plan(tmp_path, tasks)
    assert [[task.name for task in share.tasks] for share in made.recipe.passes] == [["found", "vector"], ["apart"]]
    assert "apart_n_segments" in made.recipe.schema.names
    assert "vector_n_segments" not in made.recipe.schema.names


def test_passes_and_encoders_are_shared_where_attention_agrees_and_tokenization_always(tmp_path: Path) -> None:
    task = {"head": "embedding", "model": str(tiny_sentence_transformer(tmp_path / "model"))}
    top_k = [{**task, "attention": {"kind": "topk", "k": k}} for k in (4, 4, 8)]
    made = plan(tmp_path, {"full": task, "a": top_k[0], "b": top_k[1], "c": top_k[2], "same": {**task, "attention": {"k": 3}}})
    assert [[t.name for t in share.tasks] for share in made.recipe.passes] == [["full", "same"], ["a", "b"], ["c"]]
    assert len(made.recipe.tokenizations) == len(made.recipe.views) == 1
    assert made.weights_bytes == 3 * plan(tmp_path, {"full": task}).weights_bytes


def test_top_k_is_another_generation_and_full_attention_is_that_of_tables_before_it(tmp_path: Path) -> None:
    task = {"head": "embedding", "model": str(tiny_sentence_transformer(tmp_path / "model"))}
    choices: list[dict[str, Any]] = [{}, {"kind": "full"}, {"k": 3}, {"kind": "topk"}, {"kind": "topk", "k": 3}]
    made = [plan(tmp_path, {"v": {**task, "attention": choice}}) for choice in choices]
    assert set(made[0].fingerprint["tasks"]["v"]) == {"head", "settings", "weights", "tokenizer", "windows"}
    generations = [m.generation for m in made]
    assert generations[0] == generations[1] == generations[2]
    assert len(set(generations)) == 3


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "mpnet"])
def test_top_k_is_refused_to_families_without_it(family: str, tmp_path: Path) -> None:
    task = {"head": "embedding", "model": str(tiny_encoder(tmp_path / "model", model_type=family))}
    with pytest.raises(ConfigError, match=rf"^tasks\.v\.attention: no top-k attention: {family} has full attention only"):
        plan(tmp_path, {"v": {**task, "attention": {"kind": "topk"}}})


def test_columns_that_heads_read_do_not_reach_the_output(tmp_path: Path) -> None:
    model = str(case_model(tmp_path / "model", "question_answering"))
    task = {"answer": {"head": "question_answering", "model": model, "question_column": "question"}}
    made = plan(tmp_path, task)
    assert made.recipe.columns == ("question",)
    assert "question" not in made.recipe.schema.names
    assert "question" in plan(tmp_path, task, input={"keep": ["question"]}).recipe.schema.names


@pytest.mark.parametrize(
    ("column", "keep", "message"),
    [
        ("absent", {}, "no shard has a column 'absent'"),
        ("number", {"number": "int64"}, "tasks.answer: head question_answering reads column 'number' as string"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(column: str, keep: dict[str, str], message: str, tmp_path: Path) -> None:
    model = str(case_model(tmp_path / "model", "question_answering"))
    task = {"answer": {"head": "question_answering", "model": model, "question_column": column}}
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, task, input={"keep": keep})


def test_a_second_text_that_leaves_no_room_is_refused_where_it_is_known(tmp_path: Path) -> None:
    model = str(case_model(tmp_path / "model", "question_answering"))
    task = {"answer": {"head": "question_answering", "model": model, "question": "who is the king of the sea"}}
    with pytest.raises(
        ConfigError, match="a window of 10 tokens has no room beside 12 tokens of prompt, second text and special"
    ):
        plan(tmp_path, task, segments={"max_tokens": 10})


def test_a_model_of_another_task_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    model = case_model(tmp_path / "model", "question_answering")
    with pytest.raises(ConfigError, match=r"tasks\.found: .*this head needs a model for TokenClassification"):
        plan(tmp_path, {"found": {"head": "token_classification", "model": str(model)}})
    assert json.loads((model / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
