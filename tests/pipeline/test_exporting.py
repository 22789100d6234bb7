"""int8 is calibrated on some documents of the job, verified on others, and kept only where it is near enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.exports import MANIFEST
from pipeline import exporting
from pipeline.config import Config, from_dict
from pipeline.errors import ConfigError, Held
from pipeline.exporting import Options, export
from pipeline.flow import run
from tests.tiny import tiny_sentence_transformer, tiny_task

WORDS = ["river", "mountain", "quiet", "engine", "letter", "window", "garden", "silver", "morning", "answer", "king", "sea"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports stay in this test."""
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))


def _config(folder: Path, rows: int = 30, *, tasks: Any = None, **runtime: Any) -> Config:
    """A job of two tasks on two models over texts of 1 to 40 words."""
    texts = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1 + (i * 7) % 40)) for i in range(rows)]
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": [f"d{i}" for i in range(rows)], "text": texts}), folder / "in" / "part.parquet")
    if not (folder / "vector").exists():
        tiny_sentence_transformer(folder / "vector")
        tiny_task(folder / "label", "SequenceClassification", num_labels=3, seed=2)
    tasks = tasks or {
        "vector": {"head": "embedding", "model": str(folder / "vector")},
        "label": {"head": "sequence_classification", "model": str(folder / "label")},
    }
    return from_dict(
        {
            "input": {"path": str(folder / "in"), "id": "id"},
            "output": {"path": str(folder / "out")},
            "segments": {"max_tokens": 32},
            "tasks": tasks,
            "runtime": {"engine": "local", "backend": "onnx", **runtime},
        }
    )


def test_int8_of_every_model_calibrated_and_verified_on_documents_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[exporting._Sample] = []
    take = exporting._take

    def kept(config: Config, folder: Path, count: int) -> exporting._Sample:
        taken.append(take(config, folder, count))
        return taken[-1]

    monkeypatch.setattr(exporting, "_take", kept)
    report = export(_config(tmp_path, precision="int8"), Options(str(tmp_path / "exports"), sample=10, min_similarity=0.5))
    assert (report["backend"], report["precision"]) == ("onnx", "int8")
    assert [made["model"] for made in report["exports"]] == [str(tmp_path / "vector"), str(tmp_path / "label")]
    for made, task in zip(report["exports"], ("vector", "label"), strict=True):
        assert Path(made["folder"]).parent == tmp_path / "exports"
        manifest = json.loads((Path(made["folder"]) / MANIFEST).read_text())
        assert manifest["verification"] == made["verification"]
        assert manifest["calibration"] == made["calibration"]
        assert made["calibration"]["windows"] == 10
        (found,) = [made["verification"][task]]
        assert found["documents"] == 10
        assert 0.5 < found["mean"] <= 1
        assert found["min"] <= found["mean"]
    assert report["exports"][0]["verification"]["vector"]["mean"] < 0.999999
    calibrated, verified = ({*table["id"].to_pylist()} for table in (taken[0].calibration, taken[0].verification))
    assert len(calibrated) == len(verified) == 10
    assert not calibrated & verified
    assert not (tmp_path / "out").exists()


def test_what_is_too_far_from_the_reference_is_not_kept(tmp_path: Path) -> None:
    config = _config(tmp_path, precision="int8")
    with pytest.raises(
        Held, match=r"task vector: mean similarity 0\.\d+, min .* over 8 documents, and a mean of 0\.99999 is asked"
    ):
        export(config, Options(str(tmp_path / "exports"), sample=8, min_similarity=0.99999))
    assert [path.name for path in (tmp_path / "exports").iterdir() if not path.name.startswith(".")] == []


def test_an_exact_export_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    config = _config(tmp_path)
    cached = export(config, Options())["exports"]
    assert {Path(made["folder"]).parent for made in cached} == {tmp_path / "cache" / "exports"}
    named = export(config, Options(str(tmp_path / "exports")))["exports"]
    assert {Path(made["folder"]).parent for made in named} == {tmp_path / "exports"}
    assert all(made["verification"]["min"] > 0.99999 for made in named)
    # What `--to` names goes before runtime.exports.
    for name, options in (("exports", Options()), ("other", Options(str(tmp_path / "other")))):
        made_there = export(_config(tmp_path, exports=str(tmp_path / "exports")), options)["exports"]
        assert {Path(made["folder"]).parent for made in made_there} == {tmp_path / name}


def test_auto_is_the_precision_that_a_run_would_have(tmp_path: Path) -> None:
    config, task = _config(tmp_path), {"vector": {"head": "embedding", "model": str(tmp_path / "vector")}}
    assert export(config, Options())["precision"] == "fp32"
    assert not (tmp_path / "out").exists()
    int8: dict[str, Any] = {"precision": "int8", "exports": str(tmp_path / "exports")}
    made = export(_config(tmp_path, tasks=task, **int8), Options(sample=4, min_similarity=0.5))
    assert run(_config(tmp_path, tasks=task, **int8))["published"]
    auto = export(_config(tmp_path, tasks=task, **int8 | {"precision": "auto"}), Options(sample=5, min_similarity=0.5))
    assert auto["precision"] == "int8"
    assert [found["folder"] for found in auto["exports"]] == [found["folder"] for found in made["exports"]]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_two_revisions_of_a_model_are_two_exports(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = ["0" * 40, "1" * 40]
    for seed, commit in enumerate(commits):  # the hub's cache, as downloads leave it
        tiny_sentence_transformer(tmp_path / "hub" / "models--someone--tiny" / "snapshots" / commit, seed=seed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tasks = {f"v{n}": {"head": "embedding", "model": "someone/tiny", "revision": commit} for n, commit in enumerate(commits)}
    config = _config(tmp_path, tasks=tasks, precision=precision)
    made = export(config, Options(str(tmp_path / "exports"), sample=4, min_similarity=0.5))["exports"]
    assert [(found["model"], found["revision"]) for found in made] == [("someone/tiny", commit) for commit in commits]
    assert len({found["folder"] for found in made}) == len({found["digest"] for found in made}) == 2


@pytest.mark.parametrize(
    ("windows", "room", "rows"),
    [
        ([1] * 10, 100, range(10)),
        ([50, 1, 1, 1, 1, 1, 1, 1, 1, 1], 10, range(1, 10)),  # one that does not fit is left out
        ([50, 40, 30, 20, 60, 70, 80, 1, 90, 100], 35, [0, 1, 2, 3, 4, 5, 6, 7]),  # too few fit: the shortest of the others too
        ([500, 500, 500], 10, range(3)),  # all that there are
    ],
)
def test_documents_that_verify_are_enough_and_affordable(windows: list[int], room: int, rows: Any) -> None:
    assert exporting._affordable(np.array(windows), room).tolist() == list(rows)


def test_int8_is_verified_on_eight_documents_however_small_the_sample(tmp_path: Path) -> None:
    config = _config(tmp_path, precision="int8", tasks={"vector": {"head": "embedding", "model": str(tmp_path / "vector")}})
    (made,) = export(config, Options(sample=1, min_similarity=0.0))["exports"]
    assert made["calibration"]["windows"] == 1
    assert made["verification"]["vector"]["documents"] == 8


@pytest.mark.parametrize(
    ("runtime", "rows", "message"),
    [
        ({"backend": "torch"}, 9, "backend torch needs no export"),
        ({"precision": "bf16"}, 9, "backend onnx has no bf16; onnx has fp32, int8"),
        ({"precision": "int8"}, 1, "verified on others, and there are not two"),
    ],
)
def test_what_cannot_be_exported_is_said(runtime: dict[str, Any], rows: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(_config(tmp_path, rows, **runtime), Options())
