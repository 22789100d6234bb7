"""runtime.max_quarantine: too many rows set aside publish nothing, all of them never do, and the message says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import open_output
from pipeline.config import Config, from_dict
from pipeline.errors import Incomplete
from pipeline.flow import run


def _write(folder: Path, good: int, bad: int) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": "the river"})] * good + ["{broken"] * bad
    (folder / f"{good}-{bad}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _config(tmp_path: Path, model: Path, **runtime: Any) -> Config:
    return from_dict(
        {
            "input": {"path": str(tmp_path / "in")},
            "tasks": {"vector": {"head": "embedding", "model": str(model)}},
            "output": {"path": str(tmp_path / "out")},
            "runtime": {"engine": "local", "device": "cpu", **runtime},
        }
    )


def test_more_than_the_share_publishes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    _write(tmp_path / "in", good=9, bad=3)
    with pytest.raises(Incomplete, match=r"3 of 12 rows \(25.00%\) are in quarantine: 3 bad_json; .*max_quarantine is 0.2"):
        run(_config(tmp_path, tiny_model, max_quarantine=0.2))
    assert not (tmp_path / "out" / "_commits").exists()
    again = run(_config(tmp_path, tiny_model, max_quarantine=0.25))
    assert (again["encoded"], again["reused"], again["books"]["rows_out"]) == (0, 1, 9)
    assert again["books"]["quarantined"] == {"bad_json": 3}


def test_all_rows_are_never_published_as_bad(tmp_path: Path, tiny_model: Path) -> None:
    _write(tmp_path / "in", good=0, bad=3)
    with pytest.raises(Incomplete, match="not all rows may be"):
        run(_config(tmp_path, tiny_model))
    _write(tmp_path / "in", good=1, bad=0)
    assert run(_config(tmp_path, tiny_model))["books"]["rows_out"] == 1


def test_none_may_be_bad_and_an_input_without_rows_has_none(tmp_path: Path, tiny_model: Path) -> None:
    _write(tmp_path / "in", good=0, bad=0)
    done = run(_config(tmp_path, tiny_model, max_quarantine=0))
    assert (done["books"]["rows_in"], done["isolated"], done["taken_apart"]) == (0, {}, 0)
    assert open_output(str(tmp_path / "out")).count_rows() == 0
