"""Seeded tiny random models in the layout of real ones: each family with a real tokenizer of hand-made vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from tests.tiny_tokenizers import MODEL_TYPES, WORDS, tiny_tokenizer

__all__ = ["MODEL_TYPES", "WORDS", "tiny_bert", "tiny_encoder", "tiny_sentence_transformer", "tiny_task"]

logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Options:
    """What `tiny_sentence_transformer` can vary."""

    model_type: str = "bert"
    pooling: str | tuple[str, ...] = "mean"
    """Mode names of the new dialect; the old one writes them as booleans."""
    include_prompt: bool = True
    dialect: str = "old"
    """`old`: pooling booleans and `sentence_transformers.models.X`; `new`: pooling_mode and full module paths."""
    dense: int | None = None
    """Out features of a Dense module with tanh."""
    layer_norm: bool = False
    normalize: bool = True
    dropout: bool = False
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    max_seq_length: int | None = 32
    do_lower_case: bool = False
    subfolder: str = ""
    """Where the transformer lies; `0_Transformer` in very old repositories."""
    max_positions: int = 64
    """Usable positions; RoBERTa-like families get their offset added."""
    hidden_size: int = 32
    seed: int = 0
    config: dict[str, Any] | None = None
    """Further entries of the transformer's config.json."""


def tiny_sentence_transformer(directory: Path, **options: Any) -> Path:
    """Write a sentence-transformers repository to `directory`; options are the fields of `Options`. Returns `directory`."""
    chosen = Options(**options)
    tiny_encoder(
        directory / chosen.subfolder, **{f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name in _ENCODER_OPTIONS}
    )
    settings = {"max_seq_length": chosen.max_seq_length, "do_lower_case": chosen.do_lower_case}
    _write(directory / chosen.subfolder / "sentence_bert_config.json", {k: v for k, v in settings.items() if v is not None})
    written = {"__version__": {}, "prompts": chosen.prompts or {}, "default_prompt_name": chosen.default_prompt_name}
    _write(directory / "config_sentence_transformers.json", written)
    modules = [("", "Transformer", {}), ("1_Pooling", "Pooling", _pooling(chosen)), *_post_modules(chosen)]
    listed = []
    for index, (path, kind, config) in enumerate(modules):
        path = chosen.subfolder if kind == "Transformer" else path
        listed.append({"idx": index, "name": str(index), "path": path, "type": _module_type(kind, chosen.dialect)})
        if config:
            _write(directory / path / "config.json", config)
        else:
            (directory / path).mkdir(exist_ok=True)
    _module_weights(directory, chosen, [(path, kind, config) for path, kind, config in modules])
    _write(directory / "modules.json", listed)
    return directory


_ENCODER_OPTIONS = ("model_type", "max_positions", "hidden_size", "seed", "config")


def tiny_encoder(
    directory: Path,
    *,
    model_type: str = "bert",
    max_positions: int = 64,
    hidden_size: int = 32,
    seed: int = 0,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a two-layer random encoder of `model_type` with its tokenizer to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    chosen = _tokenizer_and_config(directory, model_type, max_positions, hidden_size)
    chosen.update(config or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(chosen).save_pretrained(directory)  # type: ignore[no-untyped-call]
    return directory


def tiny_task(
    directory: Path,
    task: str,
    *,
    model_type: str = "bert",
    max_positions: int = 64,
    hidden_size: int = 32,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a two-layer random `AutoModelFor<task>` of `model_type` with its tokenizer; `config` goes into its config.json.

    Weights of the head are wide, so that scores of other inputs differ clearly."""
    directory.mkdir(parents=True, exist_ok=True)
    chosen = _tokenizer_and_config(directory, model_type, max_positions, hidden_size)
    names = config.pop("id2label", {})
    chosen.update(config)
    if names:  # last, since a number of labels makes up names of its own
        chosen.update({"id2label": names, "label2id": {name: i for i, name in names.items()}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = getattr(transformers, f"AutoModelFor{task}").from_config(chosen)
        model.save_pretrained(directory)
    return directory


def _tokenizer_and_config(directory: Path, model_type: str, max_positions: int, hidden_size: int) -> Any:
    """Save the tokenizer and make the config that fits it."""
    tokenizer = tiny_tokenizer(directory, model_type, max_positions)
    pad = tokenizer.pad_token_id
    config = AutoConfig.for_model(
        model_type, **_sizes(model_type, hidden_size, max_positions + (pad + 1 if model_type in _OFFSET else 0))
    )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{kind}_token_id") for name, kind in _IDS.items()}
    config.update({"vocab_size": len(tokenizer), **ids})
    return config


def tiny_bert(directory: Path, **options: Any) -> Path:
    """`tiny_encoder` of type bert: plain transformers files, no modules.json."""
    return tiny_encoder(directory, model_type="bert", **options)


_IDS = {"pad": "pad", "bos": "cls", "cls": "cls", "eos": "sep", "sep": "sep"}
_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families whose position ids start after the padding id."""


def _sizes(model_type: str, hidden: int, positions: int) -> dict[str, Any]:
    if model_type == "distilbert":
        return {
            "dim": hidden,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 2 * hidden,
            "max_position_embeddings": positions,
            "initializer_range": 0.4,
        }
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": positions,
        "initializer_range": 0.4,  # far from zero, so that other tokens give clearly other vectors
    }
    extra: dict[str, dict[str, Any]] = {
        "electra": {"embedding_size": hidden // 2},
        "albert": {"embedding_size": hidden // 2},
        "roberta": {"type_vocab_size": 1},
        "xlm-roberta": {"type_vocab_size": 1},
        "camembert": {"type_vocab_size": 1},
        "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True},
        "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16, "initializer_cutoff_factor": 2.0},
    }
    return sizes | extra.get(model_type, {})


_BOOLEANS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_NEW_PATHS = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
}


def _module_type(kind: str, dialect: str) -> str:
    return _NEW_PATHS[kind] if dialect == "new" else f"sentence_transformers.models.{kind}"


def _modes(options: Options) -> tuple[str, ...]:
    return (options.pooling,) if isinstance(options.pooling, str) else options.pooling


def _pooling(options: Options) -> dict[str, Any]:
    if options.dialect == "new":
        return {
            "embedding_dimension": options.hidden_size,
            "pooling_mode": options.pooling,
            "include_prompt": options.include_prompt,
        }
    booleans = {key: mode in _modes(options) for mode, key in _BOOLEANS.items()}
    return {"word_embedding_dimension": options.hidden_size, **booleans, "include_prompt": options.include_prompt}


def _post_modules(options: Options) -> list[tuple[str, str, dict[str, Any]]]:
    modules: list[tuple[str, str, dict[str, Any]]] = []
    width = options.hidden_size * len(_modes(options))
    if options.dropout:
        modules.append(("2_Dropout", "Dropout", {"dropout": 0.5}))
    if options.dense:
        activation = "torch.nn.modules.activation.Tanh"
        modules.append(
            (
                "2_Dense",
                "Dense",
                {"in_features": width, "out_features": options.dense, "bias": True, "activation_function": activation},
            )
        )
        width = options.dense
    if options.layer_norm:
        modules.append(("3_LayerNorm", "LayerNorm", {"dimension": width}))
    if options.normalize:
        modules.append(("4_Normalize", "Normalize", {}))
    return modules


def _module_weights(directory: Path, options: Options, modules: list[tuple[str, str, dict[str, Any]]]) -> None:
    generator = torch.Generator().manual_seed(options.seed)
    for path, kind, config in modules:
        if kind == "Dense":
            weight = (
                torch.randn(config["out_features"], config["in_features"], generator=generator) / config["in_features"] ** 0.5
            )
            bias = torch.randn(config["out_features"], generator=generator)
            safetensors.torch.save_file({"linear.weight": weight, "linear.bias": bias}, directory / path / "model.safetensors")
        elif kind == "LayerNorm":
            scale, shift = (torch.randn(config["dimension"], generator=generator) for _ in range(2))
            safetensors.torch.save_file({"norm.weight": scale, "norm.bias": shift}, directory / path / "model.safetensors")


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
