"""Text to token ids: the body tokens of whole documents, of any length, and what stands around them in each window.

Fast tokenizers only. The checkpoint's own truncation and padding are switched off, and no special tokens are added: windows
are cut in ids afterwards and framed by `Tokenizer.frame`. Special-token strings in a text become their special ids, as in the
reference.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from transformers import AutoTokenizer

from operators.inputs import Ids, Tokens
from operators.packing import Frame

_BATCH_CHARACTERS = 1 << 20
"""Characters tokenized at once; encodings take about 80 bytes for each, 140 with offsets."""

_PART_CHARACTERS = 1 << 18
"""Longer documents are tokenized in parts of about this many characters, where the tokenizer allows."""

_UNLIMITED = 1 << 24
"""A tokenizer that declares more than this declares no limit (transformers writes 1e30)."""

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

_BREAK = re.compile(r"(?<=\S)(?=[ \n]\w)")
"""A place before a single space or line end between words; see `_breaks_at_spaces`."""


class _Part(NamedTuple):
    document: int
    start: int
    text: str


class Tokenizer:
    """The tokenizer in `directory`, with `prompt` put before every text; loads no weights.

    `lowercase` is sentence-transformers' do_lower_case. ValueError where the directory has no fast tokenizer, or where the
    prompt's tokens would merge with the text's.
    """

    def __init__(self, directory: Path, *, prompt: str = "", lowercase: bool = False) -> None:
        loaded = _load(directory)
        self._backend: Backend = copy.deepcopy(loaded.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        if lowercase:
            _add_lowercase(self._backend)
        self._prompt = prompt
        self._in_parts = _breaks_at_spaces(self._backend)
        self.model_max_length: int | None = loaded.model_max_length if loaded.model_max_length < _UNLIMITED else None
        self._prompt_ids = self._ids(prompt.rstrip())
        self.mask_id: int | None = loaded.mask_token_id
        self.special_ids = frozenset(loaded.all_special_ids)
        self._has_types = "token_type_ids" in loaded.model_input_names
        self.frame = self._make_frame()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides which tokens a text becomes, and what stands around them in its windows."""
        frame = [self.frame.prefix.tolist(), self.frame.suffix.tolist(), self.frame.prompt_length, self._has_types]
        return hashlib.sha256(f"{self._prompt}\0{self._backend.to_str()}\0{frame}".encode()).hexdigest()

    def token(self, id_: int) -> str:
        """The text of one token, as the tokenizer decodes it alone."""
        text: str = self._backend.decode([id_], skip_special_tokens=False)
        return text

    def pair_frame(self) -> Frame:
        """What the tokenizer puts around and between two texts, found by trying. ValueError where it knows no pairs."""
        probe = self._backend.encode("a", "b", add_special_tokens=True)
        sequence = np.array([-1 if s is None else s for s in probe.sequence_ids])
        first, second = np.flatnonzero(sequence == 0), np.flatnonzero(sequence == 1)
        if not len(first) or not len(second) or first[-1] + 1 == second[0]:
            raise ValueError("the tokenizer puts nothing between two texts; this head needs one that was made for pairs")
        cuts = [0, first[0], first[-1] + 1, second[0], second[-1] + 1, len(sequence)]
        prefix, _, middle, _, suffix = (np.array(probe.ids[a:b], np.int32) for a, b in pairwise(cuts))
        types = [probe.type_ids[a] if b > a else 0 for a, b in pairwise(cuts)] if self._has_types else [0] * 5
        return Frame(prefix, suffix, 0, middle, (types[0], types[1], types[2], types[3], types[4]))

    def tokenize(self, texts: pa.LargeStringArray, offsets: bool = False) -> Tokens:
        """Body tokens of each text, without specials and prompt; with `offsets` also their spans and words. No text may be null.

        Memory beyond the result is bounded by `_BATCH_CHARACTERS`, unless the tokenizer needs long texts whole."""
        ids: list[Ids] = [np.empty(0, np.int32)]
        spans: list[npt.NDArray[np.int32]] = [np.empty((0, 2), np.int32)]
        words: list[Ids] = [np.empty(0, np.int32)]
        counts = np.zeros(len(texts), np.int64)
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        for batch in self._batches(texts):
            encodings = encode([part.text for part in batch], add_special_tokens=False)
            for part, encoding in zip(batch, encodings, strict=True):
                skip = len(self._prompt_ids) if part.start == 0 else 0
                ids.append(np.array(encoding.ids[skip:], np.int32))
                counts[part.document] += len(ids[-1])
                if offsets:
                    # The first token of a text may reach back into the prompt's last space.
                    shifted = np.array(encoding.offsets[skip:], np.int32).reshape(-1, 2) + (part.start - len(self._prompt))
                    spans.append(np.maximum(shifted, 0))
                    # Words of a later part follow those before it: a part has no more words than characters.
                    numbers = np.array(encoding.word_ids[skip:], np.float64)  # None, for no word, becomes NaN
                    words.append(np.where(np.isnan(numbers), -1, numbers + part.start).astype(np.int32))
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not offsets:
            return Tokens(np.concatenate(ids), bounds)
        return Tokens(np.concatenate(ids), bounds, np.concatenate(spans), np.concatenate(words))

    def _batches(self, texts: pa.LargeStringArray) -> Iterator[list[_Part]]:
        """Prompt and text of each document, in parts where it is long, batched by size."""
        batch: list[_Part] = []
        room = _BATCH_CHARACTERS
        for document, text in enumerate(texts):
            for start, part in self._parts(self._prompt + text.as_py()):
                batch.append(_Part(document, start, part))
                room -= len(part)
                if room <= 0:
                    yield batch
                    batch, room = [], _BATCH_CHARACTERS
        yield batch

    def _parts(self, text: str) -> Iterator[tuple[int, str]]:
        """Where each part starts, and the part; cut so that tokens of the parts are tokens of the whole."""
        start = 0
        while self._in_parts and len(text) - start > _PART_CHARACTERS:
            found = _BREAK.search(text, start + _PART_CHARACTERS)
            if found is None:
                break
            yield start, text[start : found.start()]
            start = found.start()
        yield start, text[start:] if start else text

    def _ids(self, text: str) -> Ids:
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def _make_frame(self) -> Frame:
        """What the tokenizer puts around a text, found by trying; and the prompt, checked to keep its tokens before any text."""
        probe = self._backend.encode("a", add_special_tokens=True)
        mask = np.array(probe.special_tokens_mask, bool)
        body = np.flatnonzero(~mask)
        prefix, suffix = (np.array(probe.ids[part], np.int32) for part in (slice(0, body[0]), slice(body[-1] + 1, None)))
        probes = ("a", "The", "1", "\u4e2d", "(")
        apart = all((self._ids(self._prompt + text)[: len(self._prompt_ids)] == self._prompt_ids).all() for text in probes)
        if self._prompt[-1:].isalnum() or not apart:
            raise ValueError(
                f"prompt {self._prompt!r} would merge with the first word of a text; end it with a colon and a space"
            )
        return Frame(np.concatenate([prefix, self._prompt_ids]), suffix, self._excluded())

    def _excluded(self) -> int:
        """Leading tokens that sentence-transformers leaves out of pooling: those of the prompt alone, less a last special one."""
        if not self._prompt:
            return 0
        ids = self._backend.encode(self._prompt, add_special_tokens=True).ids
        return len(ids) - (ids[-1] in self.special_ids)


def _load(directory: Path) -> Any:
    """The fast tokenizer of transformers; ValueError where there is none."""
    # Without a vocabulary transformers makes an empty tokenizer, to which every word is unknown, and says nothing.
    if not any(file for pattern in _VOCABULARIES for file in directory.glob(pattern)):
        raise ValueError(f"{directory} holds no tokenizer ({', '.join(_VOCABULARIES)}); add the model's own")
    try:
        loaded = AutoTokenizer.from_pretrained(  # a directory that was checked  # nosec B615
            str(directory), use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot parse
        raise ValueError(
            f"{directory}: the tokenizer does not load ({type(error).__name__}); save it as tokenizer.json"
        ) from error
    if not loaded.is_fast:
        raise ValueError(f"{directory} holds no fast tokenizer; save one as tokenizer.json")
    return loaded


def _add_lowercase(backend: Backend) -> None:
    """Lowercase before all other normalization, unless that is done already (as sentence-transformers does)."""
    present = backend.normalizer
    steps: list[Any] = [*iter(present)] if isinstance(present, normalizers.Sequence) else [present] if present else []
    if not any(isinstance(s, normalizers.Lowercase) for s in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _breaks_at_spaces(backend: Backend) -> bool:
    """Whether a text may be cut before a single space or line end between words without changing its tokens.

    So it is with every tokenizer that splits words at white space before it looks for pieces. It is tried on a sample, and
    tokenizers whose added tokens hold or swallow spaces are left out."""
    if any(token.rstrip or re.search(r"\s", token.content) for token in backend.get_added_tokens_decoder().values()):
        return False
    words = ("The", "naive", "7", "\u4e2d\u6587.", "end,", "x-ray")
    return all(
        backend.encode(space.join(words), add_special_tokens=False).ids
        == [i for n, word in enumerate(words) for i in backend.encode(space * (n > 0) + word, add_special_tokens=False).ids]
        for space in (" ", "\n")
    )
