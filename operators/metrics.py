"""Figures of predictions against gold: pure functions on Arrow arrays, one for each kind of output column.

Both sides hold one value for each row, in the same order, without nulls, one row at least. A figure that is 0/0 is 0, and
`undefined` in `Scores.overall` counts how many of those reported are.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Figures = dict[str, float | int]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """What a metric found."""

    overall: Figures
    per_label: dict[str, Figures] = field(default_factory=dict)
    """In order of the labels; `support` is the number of gold items."""
    confusion: dict[str, dict[str, int]] | None = None
    """Gold label -> predicted label -> rows, pairs that occur only; None where a row has more or less than one label."""


def classification(gold: pa.Array, predicted: pa.Array) -> Scores:
    """One label each (strings). Labels are all that occur on either side, as in scikit-learn."""
    labels, (g, p) = _codes(gold, predicted)
    right = g == p
    n = len(labels)
    scores = _label_scores(labels, _count(g[right], n), _count(p, n), _count(g, n))
    pairs, counts = np.unique(np.stack([g, p], axis=1), axis=0, return_counts=True)
    confusion: dict[str, dict[str, int]] = {}
    for (gold_code, code), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        confusion.setdefault(labels[gold_code], {})[labels[code]] = count
    return Scores({"accuracy": float(right.mean()), **scores.overall}, scores.per_label, confusion)


def multiple_choice(gold: pa.Array, predicted: pa.Array) -> Scores:
    """One index of a choice each (integers)."""
    scores = classification(gold.cast(pa.string()), predicted.cast(pa.string()))
    return Scores({"accuracy": scores.overall["accuracy"]}, dict(sorted(scores.per_label.items(), key=_number)), scores.confusion)


def multi_label(gold: pa.Array, predicted: pa.Array) -> Scores:
    """A set of labels each (lists of strings). `subset_accuracy`: rows whose two sets are equal, as in scikit-learn."""
    labels, codes = _codes(gold.flatten(), predicted.flatten())
    g, p = (np.unique(np.stack([_rows(side), c], axis=1), axis=0) for side, c in zip((gold, predicted), codes, strict=True))
    hits = _common(g, p)
    rows = len(gold)
    found, wanted = _count(hits[:, 0], rows), _count(g[:, 0], rows)
    exact = (found == wanted) & (found == _count(p[:, 0], rows))
    scores = _item_scores(labels, g, p, hits)
    return Scores({"subset_accuracy": float(exact.mean()), **scores.overall}, scores.per_label)


def entities(gold: pa.Array, predicted: pa.Array) -> Scores:
    """Lists of struct<start, end, label>: an entity is found if one of the same row has its start, end and label.

    Each entity counts once for its row: the sets of (type, start, end) that seqeval compares by default.
    """
    sides = [(side, side.flatten()) for side in (gold, predicted)]
    labels, codes = _codes(*(pc.struct_field(items, "label") for _, items in sides))
    g, p = (np.unique(_spans(side, items, c), axis=0) for (side, items), c in zip(sides, codes, strict=True))
    return _item_scores(labels, g, p, _common(g, p))


def regression(gold: pa.Array, predicted: pa.Array) -> Scores:
    """Finite float64 on both sides: errors, and the correlations of values (Pearson) and of ranks (Spearman, ties averaged)."""
    g, p = gold.to_numpy(), predicted.to_numpy()
    correlations = {"pearson": _correlation(g, p), "spearman": _correlation(_ranks(gold), _ranks(predicted))}
    known = {name: value for name, value in correlations.items() if value is not None}
    errors = {"mse": float(np.mean((p - g) ** 2)), "mae": float(np.mean(np.abs(p - g)))}
    return Scores({**errors, **dict.fromkeys(correlations, 0.0), **known, "undefined": len(correlations) - len(known)})


def pair_score(gold: pa.Array, predicted: pa.Array) -> Scores:
    """As `regression`; where gold holds nothing but 0 and 1 also `average_precision` and `roc_auc`.

    Average precision is sum((R[n] - R[n-1]) P[n]) over the distinct scores; the area under the ROC curve is the share of
    pairs (positive, negative) in the right order, ties counting one half.
    """
    scores = regression(gold, predicted)
    g = gold.to_numpy()
    if not np.isin(g, (0, 1)).all():
        return scores
    positives = int(g.sum())
    pairs = positives * (len(g) - positives)
    precision = _average_precision(g == 1, predicted.to_numpy()) if positives else 0.0
    below = float(_ranks(predicted)[g == 1].sum()) - positives * (positives + 1) / 2
    undefined = scores.overall["undefined"] + (positives == 0) + (pairs == 0)
    area = below / pairs if pairs else 0.0
    return Scores({**scores.overall, "average_precision": precision, "roc_auc": area, "undefined": undefined})


def answers(gold: pa.Array, predicted: pa.Array) -> Scores:
    """Exact match and F1 of SQuAD. Gold: lists of acceptable answers, none where there is no answer; predicted: strings, or "".

    Each row takes the best of its gold answers. See `answer_tokens` for text that is written without spaces.
    """
    figures = np.array([_answer(wanted, given) for wanted, given in zip(gold.to_pylist(), predicted.to_pylist(), strict=True)])
    answerable = figures[:, 2] == 1
    groups = {"answerable": figures[answerable], "unanswerable": figures[~answerable]}
    per_label = {name: _answer_figures(rows) | {"support": len(rows)} for name, rows in groups.items()}
    return Scores(_answer_figures(figures), per_label)


def answer_tokens(text: str) -> list[str]:
    """The tokens that SQuAD compares: lower case, without punctuation and articles, cut at spaces.

    In a text with Chinese or Japanese characters each of them is a token, and all of Unicode's punctuation goes, as in MLQA: F1
    is then one of characters.
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    if not _IDEOGRAPHIC.search(text):
        return _ARTICLES.sub(" ", text).split()
    text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    return _IDEOGRAPHIC.sub(r" \g<0> ", text).split()


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_IDEOGRAPHIC = re.compile("[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Han, Hiragana and Katakana."""


def _answer(wanted: list[str], given: str) -> tuple[float, float, bool]:
    """Exact match, F1, and whether there is an answer. As in SQuAD 2, two empty ones agree and one empty one does not."""
    candidates = [tokens for tokens in map(answer_tokens, wanted) if tokens]
    tokens = answer_tokens(given)
    if not candidates or not tokens:
        equal = float(not candidates and not tokens)
        return equal, equal, bool(candidates)
    return float(tokens in candidates), max(_overlap(c, tokens) for c in candidates), True


def _overlap(wanted: list[str], given: list[str]) -> float:
    shared = (Counter(wanted) & Counter(given)).total()
    return 2 * shared / (len(wanted) + len(given))


def _answer_figures(figures: Floats) -> Figures:
    exact, f1, _ = figures.sum(axis=0) / max(len(figures), 1)
    return {"exact_match": float(exact), "f1": float(f1)}


def _label_scores(labels: list[str], hits: Ints, predicted: Ints, support: Ints) -> Scores:
    """Precision, recall and F1 for each label (counts are int64 [L]), and their micro, macro and weighted averages."""
    hits, predicted, support = (np.append(counts, counts.sum()) for counts in (hits, predicted, support))  # the last: micro
    below = {"precision": predicted, "recall": support, "f1": (predicted + support) / 2}
    values = {name: _ratio(hits, counts) for name, counts in below.items()}
    n = max(len(labels), 1)
    overall: Figures = {f"micro_{name}": float(v[-1]) for name, v in values.items()}
    overall |= {f"macro_{name}": float(v[:-1].sum() / n) for name, v in values.items()}
    overall |= {f"weighted_{name}": float(v[:-1] @ support[:-1] / max(support[-1], 1)) for name, v in values.items()}
    overall["undefined"] = sum(int((counts == 0).sum()) for counts in below.values())
    per_label: dict[str, Figures] = {}
    for i, label in enumerate(labels):
        per_label[label] = {**{name: float(v[i]) for name, v in values.items()}, "support": int(support[i])}
    return Scores(overall, per_label)


def _item_scores(labels: list[str], gold: Ints, predicted: Ints, hits: Ints) -> Scores:
    """Of distinct items [N, columns], whose last column is the label's code."""
    counts = [_count(items[:, -1], len(labels)) for items in (hits, predicted, gold)]
    return _label_scores(labels, *counts)


def _common(a: Ints, b: Ints) -> Ints:
    """The rows that two arrays of distinct rows share."""
    rows, counts = np.unique(np.concatenate([a, b]), axis=0, return_counts=True)
    both: Ints = rows[counts == 2]
    return both


def _codes(*sides: pa.Array) -> tuple[list[str], list[Ints]]:
    """All labels in order, and the index of each value among them (int64, one array for each side)."""
    labels = pc.unique(pa.concat_arrays(sides))
    labels = labels.take(pc.sort_indices(labels))
    return labels.to_pylist(), [pc.index_in(side, labels).to_numpy().astype(np.int64) for side in sides]


def _rows(lists: pa.Array) -> Ints:
    rows: Ints = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    return rows


def _spans(lists: pa.Array, items: pa.Array, codes: Ints) -> Ints:
    """int64 [E, 4]: row, start, end, label."""
    offsets = [pc.struct_field(items, name).to_numpy().astype(np.int64) for name in ("start", "end")]
    return np.stack([_rows(lists), *offsets, codes], axis=1)


def _count(codes: Ints, n: int) -> Ints:
    counts: Ints = np.bincount(codes, minlength=n)
    return counts


def _ratio(above: npt.NDArray[np.number], below: npt.NDArray[np.number]) -> Floats:
    ratio: Floats = np.divide(above, below, out=np.zeros(len(above)), where=below != 0)
    return ratio


def _number(item: tuple[str, Figures]) -> int:
    return int(item[0])


def _ranks(values: pa.Array) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    low, high = (pc.rank(values, tiebreaker=t).to_numpy() for t in ("min", "max"))
    ranks: Floats = (low + high) / 2
    return ranks


def _correlation(x: Floats, y: Floats) -> float | None:
    """Pearson's; None where one side does not vary."""
    if not np.ptp(x) or not np.ptp(y):
        return None
    x, y = x - x.mean(), y - y.mean()
    return float((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)))


def _average_precision(positive: Flags, scores: Floats) -> float:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last of each run of equal scores
    found = np.cumsum(positive[order])[ends]
    precision = found / (ends + 1)
    return float(precision @ np.diff(found, prepend=0) / found[-1])
