"""A whole question-answering job: each row's own question, and one question for all beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import open_output
from tests.jobs.conftest import text
from tests.tiny import tiny_task

Job = Callable[..., Path]
Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task(tmp_path_factory.mktemp("model"), "QuestionAnswering")


def test_a_question_for_each_row_and_one_for_all(tmp_path: Path, job: Job, tidemill: Tidemill, model: Path) -> None:
    (tmp_path / "in").mkdir()
    rows: list[dict[str, str | None]] = [{"text": text(i, 5 + 20 * i), "asked": "which " + "river? " * (1 + i)} for i in range(8)]
    rows += [{"text": "a text", "asked": None}, {"text": "a text", "asked": "why " * 80}, {"text": "", "asked": "what?"}]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"head": "question_answering", "model": str(model), "question_column": "asked"}
    same = {"head": "question_answering", "model": str(model), "question": "which river?", "top_k": 2, "unanswerable": True}
    config = job(input={"keep": [], "id": None}, tasks={"own": own, "same": same})
    process = tidemill("run", config, "--json")
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads(process.stdout)["books"]["quarantined"] == {"bad_value": 1, "too_long": 1}

    table = open_output(str(tmp_path / "out")).to_table()
    fields = [
        ("answer", pa.string()),
        ("score", pa.float32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("window", pa.int32()),
    ]
    assert table.schema.field("own").type == pa.struct(fields)
    assert table.schema.field("same").type == pa.list_(pa.struct(fields))
    assert "asked" not in table.column_names
    assert max(table["n_segments"].to_pylist()) > 3
    answers, lists = table["own"].to_pylist(), table["same"].to_pylist()
    assert len(answers) == 9
    for row, answer, listed in zip([*rows[:8], rows[10]], answers, lists, strict=True):
        if not row["text"]:
            assert (set(answer.values()), [set(found.values()) for found in listed]) == ({None}, [{None}])
            continue
        assert len(listed) == 2
        for found in [answer, *listed]:
            if found["answer"] is not None:
                assert found["answer"] == str(row["text"])[found["start"] : found["end"]] != ""
                assert 0 < found["score"] <= 1

    files = tidemill("files", tmp_path / "out", "--quarantine").stdout.split()
    entries = pa.concat_tables(pq.read_table(f) for f in files).to_pylist()
    assert sorted((e["reason"], e["detail"]) for e in entries) == [
        ("bad_value", "column 'asked' is null, and a task reads it"),
        ("too_long", "more tokens than one window holds beside its second text"),
    ]


def test_a_model_for_something_else_is_refused(tmp_path: Path, job: Job, tidemill: Tidemill, tiny_model: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}\n')
    task = {"head": "question_answering", "model": str(tiny_model), "question": "what?"}
    process = tidemill("plan", job(input={"keep": [], "id": None}, tasks={"answer": task}))
    assert process.returncode == 2
    assert "tasks.answer" in process.stderr
    assert "needs a model for QuestionAnswering" in process.stderr
