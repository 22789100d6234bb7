"""An export is found by all that it was made of, and appears whole or not at all, whoever else makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from operators.exports import MANIFEST, Identity, cache, find, identify, make
from operators.models.layout import read_layout
from tests.tiny import tiny_encoder

IDENTITY = Identity("bert", "onnx", "fp32", "f" * 64, {"onnxruntime": "1"})


def _write(text: str, folder: Path) -> dict[str, int]:
    (folder / "model.onnx").write_text(text)
    return {"tokens": 3}


def test_what_was_made_is_found_in_the_directory_and_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "home"))
    assert find(IDENTITY, None) is None
    cached = make(IDENTITY, cache(), lambda folder: _write("cached", folder))
    assert cached.folder == tmp_path / "home" / "exports" / IDENTITY.name
    assert find(IDENTITY, None) == cached
    assert find(IDENTITY, str(tmp_path / "named")) == cached
    named = make(IDENTITY, tmp_path / "named", lambda folder: _write("named", folder))
    assert find(IDENTITY, str(tmp_path / "named")) == named
    assert named.digest != cached.digest
    manifest = json.loads((named.folder / MANIFEST).read_text())
    assert manifest["tokens"] == 3
    assert manifest["versions"] == {"onnxruntime": "1"}
    assert manifest["fingerprint"] == IDENTITY.fingerprint


def test_another_precision_backend_version_or_weight_is_another_export(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path / "model"))
    first = identify(layout, "onnx", "fp32", ("onnxruntime",))
    assert set(first.versions) == {"onnxruntime", "torch", "transformers"}
    assert identify(layout, "onnx", "fp32", ("onnxruntime",)).name == first.name
    names = {first.name, identify(layout, "onnx", "int8", ("onnxruntime",)).name}
    names.add(identify(layout, "openvino", "fp32", ("openvino",)).name)
    names.add(Identity(first.model_type, first.backend, first.precision, first.fingerprint, {"onnxruntime": "0"}).name)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    names.add(identify(layout, "onnx", "fp32", ("onnxruntime",)).name)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    names.add(identify(layout, "onnx", "fp32", ("onnxruntime",)).name)
    assert len(names) == 6


def test_what_fails_leaves_nothing_and_what_stands_is_not_made_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, int]:
        _write("half", folder)
        raise ValueError("too far")

    with pytest.raises(ValueError, match="too far"):
        make(IDENTITY, tmp_path, fail)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    first = make(IDENTITY, tmp_path, lambda folder: _write("one", folder))
    assert make(IDENTITY, tmp_path, fail) == first
    with pytest.raises(ValueError, match="too far"):
        make(IDENTITY, tmp_path, fail, again=True)
    assert find(IDENTITY, str(tmp_path)) == first
    second = make(IDENTITY, tmp_path, lambda folder: _write("two", folder), again=True)
    assert second.digest != first.digest
    assert find(IDENTITY, str(tmp_path)) == second
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [IDENTITY.name]


def test_what_a_killed_build_left_is_removed_after_a_day(tmp_path: Path) -> None:
    for name, hours in (("old", 25), ("new", 23)):
        folder = tmp_path / f".tmp{name}"
        (folder / "export").mkdir(parents=True)
        os.utime(folder, (time.time() - hours * 3600,) * 2)
    make(IDENTITY, tmp_path, lambda folder: _write("graph", folder))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [".tmpnew", IDENTITY.name]


def test_where_builds_happen_is_what_is_swept(tmp_path: Path) -> None:
    seen: list[Path] = []

    def build(folder: Path) -> dict[str, int]:
        seen.append(folder)
        return _write("graph", folder)

    make(IDENTITY, tmp_path, build)
    assert seen[0].relative_to(tmp_path).parts[0].startswith(".tmp")


@pytest.mark.parametrize("damage", ["edited", "missing", "added"])
def test_a_graph_that_is_not_the_one_that_was_made_is_refused(damage: str, tmp_path: Path) -> None:
    made = make(IDENTITY, tmp_path, lambda folder: _write("graph", folder))
    made.check()
    if damage == "edited":
        _write("grap_", made.folder)
    elif damage == "missing":
        (made.folder / "model.onnx").unlink()
    else:
        (made.folder / "more").touch()
    with pytest.raises(ValueError, match=rf"{IDENTITY.name} is damaged: its files are not what tidemill_export\.json says"):
        made.check()


_RACER = """
import sys
from pathlib import Path
sys.path.insert(0, "")
from operators.exports import Identity, make

def build(folder):
    (Path(sys.argv[1]) / "builds").open("a").write(sys.argv[2] + "\\n")
    (folder / "model.onnx").write_text(sys.argv[2] * 1000)
    return {}

print("ready", flush=True)
sys.stdin.readline()
print(make(Identity("bert", "onnx", "fp32", "f", {}), Path(sys.argv[1]) / "exports", build).digest)
"""


def test_of_two_processes_one_makes_it_and_both_have_the_same(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(tmp_path), name],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for racer in racers:  # both have imported everything
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    digests = {racer.communicate(timeout=120)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    assert len(digests) == 1
    assert len((tmp_path / "builds").read_text().split()) == 1
