"""Seeded tiny random models in the layout of real ones: each family with a real tokenizer of hand-made vocabulary."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_TEXT = """
the of and a to in is was for on with as by at from his her it that be an are river water city bank market house tree light
night king queen war law music song paint color star moon sun planet orbit engine train road bridge ship sea island storm rain
snow doctor blood heart brain cell gene drug bread milk fruit apple horse dog cat bird fish lion query passage represent sentence
"""
WORDS = _TEXT.split()
"""Words that the tokenizers know whole; all else falls into letters."""

_CHARACTERS = [*string.ascii_lowercase, *string.digits, *"人天地水火山川日月文字中国书学 ".replace(" ", ""), *string.punctuation]


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


_ENCODER_OPTIONS = ("model_type", "max_positions", "hidden_size", "seed")


def tiny_encoder(
    directory: Path, *, model_type: str = "bert", max_positions: int = 64, hidden_size: int = 32, seed: int = 0
) -> Path:
    """Write a two-layer random encoder of `model_type` with its tokenizer to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    backend, tokens = _TOKENIZERS[model_type]()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend, model_max_length=max_positions, **tokens).save_pretrained(directory)
    pad = backend.get_vocab()[tokens["pad_token"]]
    config = AutoConfig.for_model(
        model_type, **_sizes(model_type, hidden_size, max_positions + (pad + 1 if model_type in _OFFSET else 0))
    )
    ids = {f"{name}_token_id": backend.token_to_id(tokens[f"{kind}_token"]) for name, kind in _IDS.items()}
    config.update({"vocab_size": backend.get_vocab_size(), **ids})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
    return directory


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


def _word_piece() -> tuple[Tokenizer, dict[str, str]]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *WORDS, *_CHARACTERS, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _finish(backend, "[CLS]", "[SEP]"), _named("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _byte_level() -> tuple[Tokenizer, dict[str, str]]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        whole = "\u0120"  # the byte-level alphabet's space
        for letter in word:
            merges[whole, letter] = None
            whole += letter
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*special, *alphabet, *("".join(m) for m in merges)]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(dict.fromkeys(pieces))}, list(merges), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend, "<s>", "</s>"), _named("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def _unigram() -> tuple[Tokenizer, dict[str, str]]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, "\u2581", *(f"\u2581{w}" for w in WORDS), *_CHARACTERS]
    scored = [(p, 0.0 if p in special else -2.0 if len(p) > 1 else -8.0) for p in dict.fromkeys(pieces)]
    backend = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _finish(backend, "<s>", "</s>"), _named("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def _finish(backend: Tokenizer, first: str, last: str) -> Tokenizer:
    ids = [(t, backend.token_to_id(t)) for t in (first, last)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=ids
    )
    return backend


def _named(pad: str, unknown: str, first: str, last: str, mask: str) -> dict[str, str]:
    return {"pad_token": pad, "unk_token": unknown, "cls_token": first, "sep_token": last, "mask_token": mask}


_TOKENIZERS: dict[str, Callable[[], tuple[Tokenizer, dict[str, str]]]] = {
    "bert": _word_piece,
    "distilbert": _word_piece,
    "electra": _word_piece,
    "mpnet": _byte_level,
    "roberta": _byte_level,
    "modernbert": _byte_level,
    "deberta": _byte_level,
    "albert": _unigram,
    "camembert": _unigram,
    "xlm-roberta": _unigram,
    "deberta-v2": _unigram,
}
MODEL_TYPES = tuple(_TOKENIZERS)

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
