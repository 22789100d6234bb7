"""Tiny tokenizers with hand-made vocabularies, of the classes that each family's checkpoints load."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_TEXT = """
the of and a to in is was for on with as by at from his her it that be an are river water city bank market house tree light
night king queen war law music song paint color star moon sun planet orbit engine train road bridge ship sea island storm rain
snow doctor blood heart brain cell gene drug bread milk fruit apple horse dog cat bird fish lion query passage represent sentence
"""
WORDS = _TEXT.split()
"""Words that the tokenizers know whole; all else falls into letters."""

_CHARACTERS = [*string.ascii_lowercase, *string.digits, *"人天地水火山川日月文字中国书学 ".replace(" ", ""), *string.punctuation]


def tiny_tokenizer(directory: Path, model_type: str, max_positions: int) -> Any:
    """Save the tokenizer of `model_type` to `directory`; returns it."""
    backend, tokens = _TOKENIZERS[model_type]()
    if model_type in _CLASSES:
        model = json.loads(backend.to_str())["model"]
        parts = {"vocab": model["vocab"] if isinstance(model["vocab"], dict) else [tuple(pair) for pair in model["vocab"]]}
        if "merges" in model:
            parts["merges"] = [tuple(pair) for pair in model["merges"]]
        tokenizer = getattr(transformers, _CLASSES[model_type])(**parts, **tokens, model_max_length=max_positions)
    else:
        fast: Any = PreTrainedTokenizerFast
        names = ["input_ids", "attention_mask"]
        tokenizer = fast(tokenizer_object=backend, model_input_names=names, model_max_length=max_positions, **tokens)
    tokenizer.save_pretrained(directory)
    return tokenizer


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


def _mpnet() -> tuple[Tokenizer, dict[str, str]]:
    """Pieces of BERT with the special tokens of RoBERTa, padding second as transformers takes for granted."""
    backend, _ = _word_piece()
    pieces = sorted(backend.get_vocab(), key=backend.token_to_id)
    renamed = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *pieces[5:]]
    backend.model = models.WordPiece({piece: i for i, piece in enumerate(renamed)}, unk_token="[UNK]")
    return backend, _named("<pad>", "[UNK]", "<s>", "</s>", "<mask>")


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
    "mpnet": _mpnet,
    "roberta": _byte_level,
    "modernbert": _byte_level,
    "deberta": _byte_level,
    "albert": _unigram,
    "camembert": _unigram,
    "xlm-roberta": _unigram,
    "deberta-v2": _unigram,
}
MODEL_TYPES = tuple(_TOKENIZERS)
_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "deberta": "DebertaTokenizer",
    "albert": "AlbertTokenizer",
    "camembert": "CamembertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
}
"""ModernBERT's checkpoints load the general class."""
