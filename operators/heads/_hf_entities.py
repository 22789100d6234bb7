"""`merge: hf`: entities as the token classification pipeline of transformers 5 finds them, window by window.

After `gather_pre_entities`, `group_entities` and `aggregate_overlapping_entities` of transformers 5.23, on all windows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from operators.entities import Spans
from operators.inputs import Ids
from operators.segmentation import Flags, Ints


@dataclass(frozen=True)
class Pieces:
    """What transformers asks of a tokenizer to tell the pieces of words."""

    lengths: Ints | None
    """int64 [V]: characters of each token, its prefix included; None where the tokenizer marks no pieces (it is no WordPiece)."""
    unknown: int
    """Id of the unknown token, or -1."""

    @classmethod
    def read(cls, directory: Path) -> Pieces:
        """Of the tokenizer in `directory`."""
        loaded = AutoTokenizer.from_pretrained(  # a directory that was checked  # nosec B615
            str(directory), local_files_only=True, trust_remote_code=False
        )
        unknown = -1 if loaded.unk_token_id is None else int(loaded.unk_token_id)
        if not getattr(loaded.backend_tokenizer.model, "continuing_subword_prefix", None):
            return cls(None, unknown)
        tokens = loaded.convert_ids_to_tokens(list(range(len(loaded))))
        return cls(np.array([len(token or "") for token in tokens], np.int64), unknown)

    def continues(self, ids: Ids, spans: Ids, after_space: Flags) -> Flags:
        """bool [N]: the token goes on with the word of the token before (`is_subword`).

        `after_space`: bool [N], whether a space is at the token's start or before it, or the text begins there."""
        continued: Flags = ~after_space if self.lengths is None else self.lengths[ids] != spans[:, 1] - spans[:, 0]
        continued &= ids != self.unknown
        return continued


def after_space(texts: list[str], document: Ints, start: Ids) -> Flags:
    """bool [N]: tokens that start at `start` of their document begin its text, or stand at or right behind a space."""
    # One more character behind each text: tokens may start at its end.
    space = np.frombuffer("\0".join([*texts, ""]).encode("utf-32-le"), np.uint32) == ord(" ")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    at = (np.cumsum(lengths) - lengths)[document] + start
    near: Flags = (start == 0) | space[at] | space[at - 1]
    return near


@dataclass(frozen=True)
class Groups:
    """Labels as transformers groups them: a token joins the group before it iff its tag is the same and its prefix is not B."""

    names: tuple[str, ...]
    """Of the entities, one for each label."""
    tag: Ints
    """int64: number of the label without B- or I-."""
    begins: Flags

    @classmethod
    def of(cls, labels: tuple[str, ...]) -> Groups:
        """Of a model's labels."""
        tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
        numbers = {tag: i for i, tag in enumerate(dict.fromkeys(tags))}
        # The name is cut at any first hyphen, also where the tag is not: transformers calls both E-LOC and X-LOC LOC.
        names = tuple(label.split("-", 1)[-1] for label in labels)
        return cls(names, np.array([numbers[t] for t in tags], np.int64), np.array([label.startswith("B-") for label in labels]))

    def group(self, tags: Spans, window: Ints) -> Spans:
        """The entities of each window from its words or tokens; `window` (int64 [N]) says whose they are."""
        opens = self.begins[tags.label]
        opens[:1] = True
        tag = self.tag[tags.label]
        opens[1:] |= (tag[1:] != tag[:-1]) | (window[1:] != window[:-1])
        grouped = tags.joined(opens)
        return grouped.take(np.array([name != "O" for name in self.names])[grouped.label])


def without_overlaps(entities: Spans, many: Flags) -> Spans:
    """Of entities that overlap, in documents of several windows (`many`, bool [D]), the longer, or the one that is surer."""
    overlapping = many[entities.document]
    order = np.where(overlapping, entities.start, np.arange(len(overlapping)))  # other documents' stay as they are
    entities = entities.take(np.lexsort((order, entities.document)))
    document, start, end, score = (
        values.tolist() for values in (entities.document, entities.start, entities.end, entities.score)
    )
    kept: list[int] = []
    for i, several in enumerate(overlapping.tolist()):
        last = kept[-1] if several and kept else -1
        if last < 0 or document[last] != document[i] or not start[last] <= start[i] < end[last]:
            kept.append(i)
        elif (end[i] - start[i], score[i]) > (end[last] - start[last], score[last]):
            kept[-1] = i
    return entities.take(np.array(kept, np.int64))
