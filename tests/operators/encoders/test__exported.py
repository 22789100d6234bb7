"""Exports compute what torch does, in every family, and are refused where they do not."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from operators.encoders import _exported, onnx
from operators.encoders import torch as reference
from operators.encoders._exported import Exported, Library
from operators.exports import Exports, cache, find, make
from operators.models.layout import Layout, read_layout
from operators.models.padded import rectangles
from operators.packing import Pack
from tests.head_cases import CASES, Worker, assert_near, case_model, masked
from tests.tiny import MODEL_TYPES, tiny_encoder

BACKENDS = ("onnx", "openvino")


def _library(name: str) -> Library:
    found: Library = importlib.import_module(f"operators.encoders.{name}").LIBRARY
    return found


def _pack(lengths: list[int]) -> Pack:
    ids = np.random.default_rng(0).integers(5, 100, sum(lengths)).astype(np.int32)
    return Pack(ids, np.cumsum([0, *lengths]).astype(np.int32), np.arange(len(lengths)))


FAMILIES = {
    **{model_type: (model_type, {}) for model_type in MODEL_TYPES},
    "deberta-v2 with convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_torch_has_it(family: str, backend: str, tmp_path: Path) -> None:
    model_type, config = FAMILIES[family]
    layout = read_layout(tiny_encoder(tmp_path, model_type=model_type, config=config))
    encoder = importlib.import_module(f"operators.encoders.{backend}").load(layout, "cpu", "fp32")
    exact = reference.load(layout, "cpu", "fp32", padded=True)
    for lengths in ([60, 17, 3, 3, 1], [64], [1]):  # other rectangles than it was verified with
        hidden = encoder.encode(_pack(lengths))
        assert hidden.dtype == torch.float32
        torch.testing.assert_close(hidden, exact.encode(_pack(lengths)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head", ["embedding", "question_answering"])
def test_heads_over_an_export_as_over_packed_torch(head: str, backend: str, tmp_path: Path) -> None:
    path = case_model(tmp_path, head)
    packed, exported = (Worker(path, head, CASES[head].settings) for _ in range(2))
    exported.encode._encoder = importlib.import_module(f"operators.encoders.{backend}").load(packed.layout, "cpu", "fp32")
    texts = masked(CASES[head].texts, packed)
    ours, theirs = (worker.run(texts, CASES[head].columns) for worker in (exported, packed))
    assert not ours.failed
    assert_near(ours.values["task"].to_pylist(), theirs.values["task"].to_pylist(), 1e-4)


def test_an_export_is_made_once_and_not_served_for_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, pack = read_layout(tiny_encoder(tmp_path, seed=8)), _pack([9, 4])
    before = onnx.load(layout, "cpu", "fp32").encode(pack)
    trace = _exported._trace
    traces: list[Path] = []

    def counted(layout: Layout, file: Path) -> None:
        traces.append(file)
        trace(layout, file)

    monkeypatch.setattr(_exported, "_trace", counted)
    torch.testing.assert_close(onnx.load(layout, "cpu", "fp32").encode(pack), before, rtol=0, atol=0)
    assert not traces
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"] *= -1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    after = onnx.load(layout, "cpu", "fp32").encode(pack)
    assert len(traces) == 1
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, reference.load(layout, "cpu", "fp32").encode(pack), rtol=0, atol=1e-4)


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path, seed=9))  # one that the cache does not hold

    def unmasked(folder: Path, precision: str, threads: int) -> Any:
        run = onnx.LIBRARY.open(folder, precision, threads)
        return lambda inputs: run({**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    wrong = replace(onnx.LIBRARY, open=unmasked)
    with pytest.raises(ValueError, match=r"the onnx export of this bert model does not compute .* use backend torch"):
        _exported.load(wrong, layout, "cpu", "fp32", None)
    assert find(wrong.identify(layout, "fp32"), None) is None


def test_an_export_that_is_wrong_in_long_windows_alone_is_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path, max_positions=600))

    def short(folder: Path, precision: str, threads: int) -> Any:
        run = onnx.LIBRARY.open(folder, precision, threads)
        return lambda inputs: run(inputs) * (-1 if inputs["input_ids"].shape[1] == 600 else 1)

    with pytest.raises(ValueError, match=r"does not compute what the model does: min cosine of token vectors -"):
        _exported.load(replace(onnx.LIBRARY, open=short), layout, "cpu", "fp32", None)
    assert _exported.load(onnx.LIBRARY, layout, "cpu", "fp32", None).hidden_size == layout.hidden_size


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    layout = read_layout(tiny_encoder(tmp_path / "model"))
    made = _exported.make_exact(onnx.LIBRARY, layout, "fp32", tmp_path / "exports")
    graph = made.folder / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="is damaged: its files"):
        _exported.load(onnx.LIBRARY, layout, "cpu", "fp32", Exports(str(tmp_path / "exports")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_keeps_near_and_is_never_made_by_loading(backend: str, tmp_path: Path) -> None:
    layout, library = read_layout(tiny_encoder(tmp_path)), _library(backend)
    with pytest.raises(ValueError, match=r"no int8 export bert-.* make it with `tidemill export CONFIG"):
        _exported.load(library, layout, "cpu", "int8", None)
    exact = _exported.make_exact(library, layout, "fp32", cache())
    samples = [rectangles(_pack([n]), with_token_types=True).inputs for n in (30, 20, 9, 17)]

    def build(folder: Path) -> dict[str, Any]:
        library.quantize(exact.folder, folder, samples)
        return {}

    made = make(library.identify(layout, "int8"), tmp_path / "exports", build)
    wanted = Exports(str(tmp_path / "exports"), {made.folder.name: made.digest})
    encoder: Exported = _exported.load(library, layout, "cpu", "int8", wanted)
    hidden, reference_hidden = (e.encode(_pack([25, 8])) for e in (encoder, reference.load(layout, "cpu", "fp32")))
    assert 0.9 < torch.nn.functional.cosine_similarity(hidden, reference_hidden).mean() < 0.999999
    with pytest.raises(ValueError, match="made again since the job was planned"):
        _exported.load(library, layout, "cpu", "int8", replace(wanted, digests={made.folder.name: "other"}))
    for unplanned in ({}, {"bert-of-another-version": made.digest}):
        with pytest.raises(ValueError, match=r"is not among the int8 exports that the job was planned with .* torch 2\."):
            _exported.load(library, layout, "cpu", "int8", replace(wanted, digests=unplanned))
    (made.folder / "more").touch()
    with pytest.raises(ValueError, match="is damaged: its files"):
        _exported.load(library, layout, "cpu", "int8", wanted)


def test_only_on_cpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"onnx computes on CPUs, not on cuda"):
        onnx.load(read_layout(tiny_encoder(tmp_path)), "cuda", "fp32")
