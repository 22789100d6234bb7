"""Generations: what changes a value makes another one, and nothing else does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import from_dict
from pipeline.planning import make_plan
from tests.tiny import tiny_sentence_transformer

CHANGES: dict[str, Any] = {
    "input.text": "body",
    "input.id": "doc",
    "input.max_document": "1MiB",
    "input.keep": ["lang"],
    "segments.policy": "truncate",
    "segments.max_tokens": 20,
    "segments.overlap": 2,
    "segments.max_segments": 3,
    "runtime.precision": "bf16",
    "tasks.vector.dim": 8,
    "tasks.vector.dtype": "float16",
    "tasks.vector.normalize": False,
    "tasks.vector.prompt": "query: ",
    "tasks.vector.aggregate": "max",
    "tasks.vector.attention": {"kind": "topk", "k": 4},
    "tasks.vector.model": "{folder}/reseeded",
}
"""Settings that change values."""

OTHERS: dict[str, Any] = {
    "name": "another",
    "input.path": "{folder}/moved",
    "input.piece": "2MiB",
    "input.format": "parquet",
    "output.path": "{folder}/elsewhere",
    "output.removed": "drop",
    "tasks.vector.model": "{folder}/copied",
    "runtime.device": "cpu",
    "runtime.engine": "local",
    "runtime.workers": 1,
    "runtime.tokens_per_pack": 77,
    "runtime.stages": "split",
    "runtime.compile": "off",
    "runtime.max_restarts": 9,
    "runtime.price_per_hour": 3.5,
    "runtime.parity_sample": 5,
    "runtime.parity_apart": 0.5,
}
"""Settings that do not."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, the same in another place; a model, its copy, and one with other weights."""
    folder = tmp_path_factory.mktemp("planning")
    for name in ("in", "moved"):
        (folder / name).mkdir()
        table = pa.table({"text": ["the king"], "body": ["the sea"], "doc": ["d"], "lang": ["en"]})
        pq.write_table(table, folder / name / "a.parquet")
    tiny_sentence_transformer(folder / "model", max_seq_length=32)
    shutil.copytree(folder / "model", folder / "copied")
    tiny_sentence_transformer(folder / "reseeded", max_seq_length=32, seed=1)
    return folder


@pytest.fixture(scope="module")
def generation(folder: Path) -> Callable[[dict[str, Any]], str]:
    """The generation of a small job with some settings changed; keys are paths in the config."""

    def plan(changed: dict[str, Any]) -> str:
        config: dict[str, Any] = {
            "input": {"path": str(folder / "in")},
            "segments": {"overlap": 6},
            "tasks": {"vector": {"head": "embedding", "model": str(folder / "model")}},
            "output": {"path": str(folder / "out")},
            "runtime": {"device": "auto"},
        }
        for path, value in changed.items():
            *sections, key = path.split(".")
            section = config
            for name in sections:
                section = section[name]
            section[key] = value.format(folder=folder) if isinstance(value, str) else value
        return make_plan(from_dict(config)).generation

    return plan


@pytest.mark.parametrize("path", CHANGES)
def test_each_setting_that_changes_values_makes_a_generation(path: str, generation: Callable[[dict[str, Any]], str]) -> None:
    assert generation({path: CHANGES[path]}) != generation({})


@pytest.mark.parametrize("path", OTHERS)
def test_each_other_setting_keeps_the_generation(path: str, generation: Callable[[dict[str, Any]], str]) -> None:
    assert generation({path: OTHERS[path]}) == generation({})


def test_another_tokenizer_and_another_task_make_a_generation(folder: Path, generation: Callable[[dict[str, Any]], str]) -> None:
    other = shutil.copytree(folder / "model", folder / "retokenized")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(
        tokenizer.read_text().replace('"lowercase":true', '"lowercase":false').replace('"lowercase": true', '"lowercase": false')
    )
    assert tokenizer.read_text() != (folder / "model" / "tokenizer.json").read_text()
    assert generation({"tasks.vector.model": str(other)}) != generation({})
    assert generation({"tasks.second": {"head": "embedding", "model": str(folder / "model")}}) != generation({})


_paths = sorted({*CHANGES} - {"tasks.vector.model"})


@given(
    st.sets(st.sampled_from(_paths), max_size=4),
    st.sets(st.sampled_from(_paths), max_size=4),
    st.sets(st.sampled_from(sorted(OTHERS))),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_generations_are_the_same_where_what_changes_values_is(
    generation: Callable[[dict[str, Any]], str], first: set[str], second: set[str], others: set[str]
) -> None:
    left, right = ({path: CHANGES[path] for path in chosen} for chosen in (first, second))
    assert (generation(left) == generation({**right, **{path: OTHERS[path] for path in others}})) == (first == second)
