"""Types that come with data run no code: line "Arrow types from data" of the threat model."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.schema import SHARD_TYPE
from pipeline.clusters import UNPICKLING, refuse_unpickling
from pipeline.config import from_dict
from pipeline.errors import ConfigError
from pipeline.flow import run
from tests.jobs.conftest import ROOT
from tests.tiny import tiny_sentence_transformer

PICKLED = "ray.data.arrow_pickled_object"


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"))


def field(name: str, storage: pa.DataType, extension: str, serialized: bytes = b"{}") -> pa.Field:
    """A field as a file has it whose extension type is not loaded here."""
    return pa.field(name, storage, metadata={"ARROW:extension:name": extension, "ARROW:extension:metadata": serialized})


def write(folder: Path, fields: list[pa.Field], columns: list[pa.Array]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), folder / "a.parquet")


def job(tmp_path: Path, model: Path, **settings: Any) -> dict[str, Any]:
    return {
        "input": {"path": str(tmp_path / "in"), **settings},
        "tasks": {"vector": {"head": "embedding", "model": str(model)}},
        "output": {"path": str(tmp_path / "out")},
        "runtime": {"engine": "local", "device": "cpu"},
    }


TEXT = pa.array(["one", "two"])
TYPES: dict[str, tuple[pa.Field, pa.Array]] = {
    "pickled object": (field("x", pa.large_binary(), PICKLED), pa.array([b"a", b"b"], pa.large_binary())),
    "tensor": (field("x", pa.list_(pa.int64()), "ray.data.arrow_tensor", b"[1]"), pa.array([[1], [2]])),
    "unknown": (field("x", pa.string(), "someone.else"), TEXT),
    "known here": (pa.field("x", pa.uuid()), pa.array([b"0" * 16, b"1" * 16], pa.uuid())),
    "nested": (
        pa.field("x", pa.struct([field("y", pa.string(), "someone.else")])),
        pa.array([{"y": "a"}, {"y": "b"}], pa.struct([pa.field("y", pa.string())])),
    ),
    "in a list": (pa.field("x", pa.list_(field("item", pa.string(), "someone.else"))), pa.array([["a"], ["b"]])),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("role", ["text", "id", "keep"])
def test_extension_types_are_refused_in_each_column_that_is_read(tmp_path: Path, model: Path, kind: str, role: str) -> None:
    typed, values = TYPES[kind]
    write(tmp_path / "in", [pa.field("text", pa.string()), typed], [TEXT, values])
    with pytest.raises(
        ConfigError, match=rf"input\.{role}: column 'x' is of extension type '.*' in shard a\.parquet; "
    ) as refused:
        run(from_dict(job(tmp_path, model, **{role: ["x"] if role == "keep" else "x"})))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("kind", TYPES)
def test_those_in_columns_that_are_not_read_do_no_harm(tmp_path: Path, model: Path, kind: str) -> None:
    typed, values = TYPES[kind]
    write(tmp_path / "in", [pa.field("text", pa.string()), typed], [TEXT, values])
    done = run(from_dict(job(tmp_path, model)))
    assert done["books"]["rows_out"] == 2
    for path in (tmp_path / "out" / "data").rglob("*.parquet"):
        schema = pq.read_schema(path)
        assert not any(isinstance(t, pa.BaseExtensionType) for t in schema.types)
        assert schema.field("_shard").type == SHARD_TYPE


# With Ray Data loaded its types are known to Arrow, and it is Arrow that calls them when it opens a file.
LOADED = """
import json, os, sys
import ray.data
from pathlib import Path
from pipeline.config import from_dict
from pipeline.engines.ray import start
from pipeline.errors import TidemillError
from pipeline.flow import run
raw = json.loads(sys.argv[1])
for keep in ([], ["object"], ["tensor"]):
    for text in ("text", "object"):
        raw["input"] = {**raw["input"], "keep": keep, "text": text}
        try:
            print("done", run(from_dict(raw))["books"]["quarantined"])
        except TidemillError as error:
            print("refused", error.exit_code, str(error).splitlines()[0])
for value in ("1", "0"):
    os.environ["RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR"] = value
    try:
        start()
    except TidemillError as error:
        print("engine refused", error.exit_code, error)
"""


def test_a_pickle_in_a_parquet_file_is_not_loaded_where_ray_data_is(tmp_path: Path, model: Path) -> None:
    """Even where the environment asks for it, and that the engine refuses before it reads anything."""
    evil = pickle.dumps(Evil(tmp_path / "mark"))
    fields = [
        pa.field("text", pa.string()),
        field("object", pa.large_binary(), PICKLED, b""),
        field("tensor", pa.list_(pa.int64()), "ray.data.arrow_tensor", evil),
    ]
    write(tmp_path / "in", fields, [TEXT, pa.array([evil, evil], pa.large_binary()), pa.array([[1], [2]])])
    raw = json.dumps(job(tmp_path, model))
    env = {**os.environ, UNPICKLING[0]: "1", "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "203.0.113.1:1", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", LOADED, raw], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "mark").exists()
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    ended = ("refused 2", "refused 3 1 of 1 rows (100.00%) are in quarantine", "done", "engine refused 2")
    assert all(line.startswith(ended) for line in lines), lines
    assert f"{UNPICKLING[0]}: it lets files of the input run code" in lines[-2]
    assert "RAY_ADDRESS: the cluster reaches beyond this machine" in lines[-1]


@pytest.mark.parametrize("name", UNPICKLING)
@pytest.mark.parametrize("value", ["1", "true", "True", " 1", "yes", "anything"])
def test_the_environment_may_not_let_ray_unpickle(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}: it lets files of the input run code"):
        refuse_unpickling()


@pytest.mark.parametrize("value", ["", "0", "false", "False"])
def test_what_is_off_is_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in UNPICKLING:
        monkeypatch.setenv(name, value)
    refuse_unpickling()


def test_rays_own_names_of_these_settings() -> None:
    """A renamed switch would be one that nobody watches."""
    import ray.data

    root = Path(ray.data.__file__).parent
    source = "".join((root / name).read_text() for name in (
        "__init__.py", "_internal/object_extensions/arrow.py", "_internal/tensor_extensions/arrow.py"
    ))  # fmt: skip
    assert all(f'"{name}"' in source for name in UNPICKLING)
    every = "".join(path.read_text() for path in root.rglob("*.py") if "tests" not in path.parts)
    assert set(re.findall(r"RAY_DATA_AUTOLOAD_\w+", every)) == set(UNPICKLING)


def test_nobody_sets_them() -> None:
    for top in ("jobs", "pipeline", "operators", "docker", "configs"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix != ".pyc" and path != ROOT / "pipeline" / "clusters.py":
                assert not any(name in path.read_text() for name in UNPICKLING), path
