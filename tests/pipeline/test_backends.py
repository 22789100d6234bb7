"""What a backend cannot do is said at planning."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from operators.devices import Device
from operators.exports import make
from operators.models.layout import read_layout
from pipeline.backends import check_backend, choose_precision, device_of, find_exports, library_of
from pipeline.config import Config, from_dict
from pipeline.errors import ConfigError
from pipeline.ledger.publish import Commit
from tests.tiny import tiny_encoder

CPU = Device("cpu", 1, "asked for")


def _config(model: str = "none", **runtime: Any) -> Config:
    task = {"head": "embedding", "model": model}
    return from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "tasks": {"vector": task}, "runtime": runtime})


@pytest.mark.parametrize(
    ("runtime", "field", "message"),
    [
        ({"backend": "onnx", "device": "cuda"}, "runtime.device", "computes on CPUs alone, got 'cuda'"),
        ({"backend": "openvino", "device": "npu"}, "runtime.device", "computes on CPUs alone, got 'npu'"),
        ({"backend": "torch", "exports": "exports"}, "runtime.exports", "backend torch reads none"),
        ({"backend": "onnx", "exports": "s3://bucket/exports"}, "runtime.exports", "name a local directory"),
    ],
)
def test_what_does_not_go_together_is_refused(runtime: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check_backend(_config(**runtime))
    assert error.value.field == field


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(backend="openvino", device="cpu")
    check_backend(config)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))
    with pytest.raises(ConfigError, match=r"openvino needs openvino: pip install 'tidemill\[openvino\]'"):
        check_backend(config)


def test_exports_run_on_the_cpu_whatever_else_is_there() -> None:
    assert device_of(_config(backend="onnx")) == "cpu"
    assert device_of(_config()) == "auto"
    assert library_of(_config()) is None


@pytest.mark.parametrize(
    ("backend", "asked", "resolved"),
    [("onnx", "auto", "fp32"), ("onnx", "int8", "int8"), ("openvino", "bf16", "bf16"), ("torch", "bf16", "bf16")],
)
def test_precision(backend: str, asked: str, resolved: str, tmp_path: Path) -> None:
    layouts = {"vector": read_layout(tiny_encoder(tmp_path))}
    assert choose_precision(_config(backend=backend, precision=asked), layouts, CPU, None)[0] == resolved


def _table_in(precision: str) -> Commit:
    """A version of a table whose precision was pinned."""
    return Commit(
        version=3,
        parent=None,
        commit_id="c",
        run_id="r",
        generation="g",
        fingerprint={},
        pins={"precision": precision},
        schema="",
        manifest="m",
        totals={},
        duplicate_ids=0,
        created_at="",
    )


@pytest.mark.parametrize(
    ("backend", "pinned", "asked", "resolved", "why"),
    [
        ("torch", "bf16", "auto", "bf16", r"^pinned by version 3 of the table$"),
        ("onnx", "int8", "auto", "int8", r"^pinned by version 3 of the table$"),
        ("onnx", "bf16", "auto", "fp32", r"^exact, .*; version 3 of the table is in bf16, which backend onnx does not have$"),
        ("torch", "int8", "auto", "fp32", r"^exact, .*; version 3 of the table is in int8, which backend torch does not have$"),
        ("onnx", "bf16", "int8", "int8", r"^asked for$"),
    ],
)
def test_what_the_table_pins_holds_where_the_backend_has_it(
    backend: str, pinned: str, asked: str, resolved: str, why: str, tmp_path: Path
) -> None:
    layouts = {"vector": read_layout(tiny_encoder(tmp_path))}
    found, reason = choose_precision(_config(backend=backend, precision=asked), layouts, CPU, _table_in(pinned))
    assert found == resolved
    assert re.search(why, reason), reason


@pytest.mark.parametrize(
    ("backend", "asked", "message"),
    [
        ("onnx", "bf16", "backend onnx has no bf16; onnx has fp32, int8; openvino has fp32, bf16, int8"),
        ("openvino", "fp16", "backend openvino has no fp16"),
        ("torch", "int8", "choose openvino or onnx"),
    ],
)
def test_precisions_that_are_not_there(backend: str, asked: str, message: str, tmp_path: Path) -> None:
    layouts = {"vector": read_layout(tiny_encoder(tmp_path))}
    with pytest.raises(ConfigError, match=message) as error:
        choose_precision(_config(backend=backend, precision=asked), layouts, CPU, None)
    assert error.value.field == "runtime.precision"


def test_int8_is_planned_with_the_export_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))
    layouts = {"vector": read_layout(tiny_encoder(tmp_path / "model"))}
    config = _config(backend="onnx", exports=str(tmp_path / "exports"))
    with pytest.raises(ConfigError, match=r"task vector: there is no int8 export .* `tidemill export CONFIG --to DIR`"):
        find_exports(config, layouts, "int8")
    library = library_of(config)
    assert library is not None

    def build(folder: Path) -> dict[str, Any]:
        (folder / "model.onnx").write_bytes(b"graph")
        return {}

    made = make(library.identify(layouts["vector"], "int8"), tmp_path / "exports", build)
    found = find_exports(config, layouts, "int8")
    assert found is not None
    assert found.directory == str(tmp_path / "exports")
    assert found.digests == {made.folder.name: made.digest}
    exact = find_exports(config, layouts, "fp32")
    assert exact is not None
    assert exact.digests == {}
    assert find_exports(_config(), layouts, "fp32") is None
