"""Models are data: lines "pickle weights", "remote code" and "moving revisions" of the threat model."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from operators.encoders.torch import load
from operators.models.layout import read_layout
from operators.models.repository import resolve
from operators.tokenization import Tokenizer
from pipeline.config import from_dict
from pipeline.errors import ConfigError
from pipeline.flow import run
from pipeline.ledger.publish import head
from pipeline.planning import make_plan
from tests.tiny import tiny_sentence_transformer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_sentence_transformer(tmp_path / "model", dense=8)


def job(tmp_path: Path, model: Path | str, **task: Any) -> dict[str, Any]:
    """A whole job over two documents."""
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    return {
        "input": {"path": str(tmp_path / "in")},
        "tasks": {"vector": {"head": "embedding", "model": str(model), **task}},
        "output": {"path": str(tmp_path / "out")},
        "runtime": {"engine": "local", "device": "cpu"},
    }


def test_the_evil_pickle_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl", "model.pickle"])
@pytest.mark.parametrize("folder", ["", "2_Dense"])
def test_a_model_with_pickles_alone_is_refused(tmp_path: Path, model: Path, name: str, folder: str) -> None:
    (model / folder / "model.safetensors").unlink()
    (model / folder / name).write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises(ConfigError, match=r"tasks\.vector\.model: .*pickled weights .* are refused") as refused:
        make_plan(from_dict(job(tmp_path, model)))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "mark").exists()


def test_pickles_beside_safetensors_are_never_opened(tmp_path: Path, model: Path) -> None:
    evil = pickle.dumps(Evil(tmp_path / "mark"))
    names = ["pytorch_model.bin", "model.pt", "model.ckpt", "vocab.pkl", "tokenizer.pickle", "training_args.bin", "scheduler.pt"]
    for folder in ("", "1_Pooling", "2_Dense"):
        for name in names:
            (model / folder / name).write_bytes(evil)
    assert run(from_dict(job(tmp_path, model)))["books"]["rows_out"] == 2
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["tokenizer.pkl", "vocab.pkl", "vocab.bin"])
def test_a_pickled_tokenizer_is_none(tmp_path: Path, model: Path, name: str) -> None:
    for file in ("tokenizer.json", "vocab.txt"):
        (model / file).unlink(missing_ok=True)
    (model / name).write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Tokenizer(model)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "part", ["pytorch_model.bin", "../evil.bin", "../model.safetensors", "other.safetensors", "/x/model.safetensors"]
)
def test_an_index_of_weights_names_safetensors_beside_it_alone(tmp_path: Path, model: Path, part: str) -> None:
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": part}}))
    with pytest.raises(ValueError, match=r"only model\*\.safetensors beside it is read"):
        resolve(str(model))


def test_weights_come_from_the_model_alone(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ValueError, match=r"adapter_config\.json takes weights from files of its own choice"):
        resolve(str(model))


_FILES = ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "1_Pooling/config.json"]
_REQUESTS: list[dict[str, Any]] = [
    {"auto_map": {"AutoModel": "evil_code.Model", "AutoTokenizer": ["evil_code.Tokenizer", None], "AutoConfig": "evil_code.C"}},
    {"trust_remote_code": True},
    {"text_config": {"auto_map": {"AutoModel": "evil_code.Model"}}},
    {"_attn_implementation": "someone/kernels"},
    {"transformers_weights": "other.safetensors"},
]


@pytest.mark.parametrize("name", _FILES)
@pytest.mark.parametrize("request_", _REQUESTS, ids=lambda r: next(iter(r)))
def test_code_of_a_model_is_refused_and_not_imported(tmp_path: Path, model: Path, name: str, request_: dict[str, Any]) -> None:
    file = model / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | request_))
    (model / "evil_code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    with pytest.raises(ConfigError, match=r"tasks\.vector\.model: .*(code of its own|of its own choice)") as refused:
        make_plan(from_dict(job(tmp_path, model)))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "mark").exists()
    assert not any("evil_code" in module for module in sys.modules)


def test_the_loaders_themselves_run_no_code(tmp_path: Path, model: Path) -> None:
    """The second lock: transformers is told not to, whatever the first one has seen."""
    layout = read_layout(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "evil_code.Model", "AutoConfig": "evil_code.C"}})
    )
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": ["evil_code.T", "evil_code.T"]}})
    )
    (model / "evil_code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    Tokenizer(model)
    load(layout, "cpu", "fp32")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickle"])
def test_no_key_of_the_config_allows_code(tmp_path: Path, model: Path, key: str) -> None:
    for place in (("tasks", "vector"), ("runtime",), ("input",)):
        raw = job(tmp_path, model)
        section: Any = raw
        for name in place:
            section = section[name]
        section[key] = True
        with pytest.raises(ConfigError, match=f"{key}: unknown key"):
            from_dict(raw)


@pytest.mark.parametrize(
    "kind", ["os.system", "evil_code.Pooling", "sentence_transformers.models.Evil", "sentence_transformers.os.system"]
)
def test_modules_of_foreign_classes_are_refused(model: Path, kind: str) -> None:
    listed = json.loads((model / "modules.json").read_text())
    listed[1]["type"] = kind
    (model / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="is unknown; known last names are"):
        resolve(str(model))


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../../elsewhere"])
def test_modules_lie_in_the_models_directory(model: Path, path: str) -> None:
    listed = json.loads((model / "modules.json").read_text())
    listed[1]["path"] = path
    (model / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="leads out of the model's directory"):
        resolve(str(model))


@pytest.mark.parametrize("activation", ["os.system", "torch.nn.Module", "torch.nn.modules.activation.MultiheadAttention"])
def test_activations_are_those_of_a_list(model: Path, activation: str) -> None:
    config = json.loads((model / "2_Dense" / "config.json").read_text()) | {"activation_function": activation}
    (model / "2_Dense" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is not one of torch\.nn's"):
        resolve(str(model))


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("text", ["[" * 200_000, '{"hidden_size": ' + "9" * 10_000 + "}", " " * (64 * 2**20 + 1), "\ud800", ""])
def test_json_that_is_made_to_hurt_is_refused(model: Path, name: str, text: str) -> None:
    (model / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"is not valid JSON|more than 67108864 bytes"):
        resolve(str(model))


@pytest.mark.parametrize("key", ["hidden_size", "max_position_embeddings"])
def test_numbers_beyond_all_measure_are_refused(model: Path, key: str) -> None:
    config = json.loads((model / "config.json").read_text()) | {key: 10**400}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=key):
        resolve(str(model))


@pytest.fixture
def hub(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with `someone/tiny` in it and no network."""
    root = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(model, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return root


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.usefixtures("hub")
def test_a_moving_revision_is_resolved_and_stands_in_the_commit(tmp_path: Path, revision: str | None) -> None:
    plan = make_plan(from_dict(job(tmp_path, "someone/tiny", revision=revision)))
    assert plan.recipe.tasks[0].model.revision == COMMIT  # what workers on other machines fetch
    run(from_dict(job(tmp_path, "someone/tiny", revision=revision)))
    commit = head(plan.recipe.store)
    assert commit is not None
    assert commit.pins["revisions"] == {"vector": COMMIT}
    assert len(commit.fingerprint["tasks"]["vector"]["weights"]) == 64


@pytest.mark.parametrize("name", ["main", "v1", "0123", "..", "../../other"])
def test_a_ref_that_leads_to_no_commit_is_refused(hub: Path, model: Path, name: str) -> None:
    (hub / "refs" / "main").write_text(name)
    target = hub / "snapshots" / name
    if not target.exists():
        shutil.copytree(model, target)
    with pytest.raises(ValueError, match=r"no commit of the hub|the hub gave no such model"):
        resolve("someone/tiny", "main")


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors", "tokenizer.json"])
def test_one_flipped_byte_of_a_model_is_another_generation(tmp_path: Path, model: Path, name: str) -> None:
    before = make_plan(from_dict(job(tmp_path, model)))
    content = bytearray((model / name).read_bytes())
    content[-40 if name.endswith("json") else -1] ^= 1
    (model / name).write_bytes(content)
    os.utime(model / name, ns=(1, 1))
    try:
        after = make_plan(from_dict(job(tmp_path, model))).generation
    except ConfigError:
        after = "refused"  # the byte was part of the tokenizer's JSON
    assert after != before.generation


@pytest.mark.parametrize("where", ["../secret.bin", "{folder}/secret.bin"])
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_export_reads_no_file_outside_of_its_folder(tmp_path: Path, backend: str, where: str) -> None:
    """Weights of an ONNX graph may lie in files that it names; here one that is not its own."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(backend if backend == "openvino" else "onnxruntime")
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": where.format(folder=tmp_path), "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    out = onnx.helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["hidden"])], "g", [], [out], [weight])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / ("model.onnx" if backend == "onnx" else "openvino_model.xml")).write_bytes(made.SerializeToString())
    library = importlib.import_module(f"operators.encoders.{backend}").LIBRARY
    with pytest.raises(
        Exception, match=r"escapes model directory|Absolute path not allowed|outside the base directory|Unable to read"
    ):
        library.open(folder, "fp32", 1)
