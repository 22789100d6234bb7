"""Scoring a task's column of a committed table against gold; the types of both choose the metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from operators.metrics import Figures, Flags, Floats, Ints, Scores
from operators.retrieval import Relevance, listed, retrieval, same_label
from operators.schema import ID
from pipeline.errors import ConfigError
from pipeline.gold import Gold, GoldFile, join, read
from pipeline.scoring import choose, is_list_of, items, misfit
from pipeline.source.types import is_number, is_string, plain
from pipeline.table import open_output


@dataclass(frozen=True)
class Question:
    """What to score."""

    task: str
    """The output column."""
    gold: str
    """A column of the table, or FILE.parquet or FILE.jsonl with or without :COLUMN."""
    on: str = ID
    """The column by which rows are known, in the table and in the file."""
    ks: tuple[int, ...] = (1, 5, 10)
    """The k of recall@k."""


@dataclass(frozen=True)
class Evaluation:
    """The answer."""

    task: str
    metric: str
    rows: int
    """Rows that were scored."""
    without_gold: int
    """Rows of the table for which there is no gold."""
    without_prediction: int
    """Gold without a row in the table, or whose row has no result."""
    scores: Scores

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, `confusion` only where there is one."""
        head = {name: getattr(self, name) for name in ("task", "metric", "rows", "without_gold", "without_prediction")}
        found: dict[str, Any] = {**head, "overall": self.scores.overall, "per_label": self.scores.per_label}
        return found if self.scores.confusion is None else {**found, "confusion": self.scores.confusion}


def evaluate_output(
    path: str, question: Question, *, version: int | None = None, storage_options: dict[str, Any] | None = None
) -> Evaluation:
    """Score the table at `path`. ConfigError where there is no such table, column or gold, or where they do not fit."""
    dataset = open_output(path, version=version, storage_options=storage_options)
    names = dataset.schema.names
    for name, option in ((question.task, "--task"), (question.on, "--on")):
        if name not in names:
            raise ConfigError(f"the table has no column {name!r}; it has {', '.join(names)}", field=option)
    inside = question.gold in names
    file = None if inside else read(question.gold, question.on, storage_options or {}, path)
    wanted = [question.task, question.on, *([question.gold] if inside else [])]
    return evaluate(dataset.to_table(columns=list(dict.fromkeys(wanted))), question, file)


def evaluate(rows: pa.Table, question: Question, file: GoldFile | None = None) -> Evaluation:
    """Score `rows` against `file`, or without one against their own column. ConfigError as for `evaluate_output`."""
    predicted = _column(rows, question.task)
    if file is None:
        gold = Gold(_column(rows, question.gold), np.ones(len(rows), bool))
    else:
        gold = join(_column(rows, question.on), file, question.on)
    if pat.is_fixed_size_list(predicted.type) and is_number(predicted.type.value_type):
        return _evaluate_vectors(predicted, _column(rows, question.on), gold, question)
    name, metric = choose(predicted.type, gold.values.type, question.task)
    wanted, given = metric.gold(gold.values), metric.predicted(predicted)
    has_gold = gold.met & _valid(wanted)
    scored = has_gold & _valid(given)
    _check_some(scored, has_gold)
    scores = metric.score(wanted.filter(pa.array(scored)), given.filter(pa.array(scored)))
    missing = gold.alone + int((has_gold & ~scored).sum())
    return Evaluation(question.task, name, int(scored.sum()), int((~has_gold).sum()), missing, scores)


def _evaluate_vectors(vectors: pa.Array, keys: pa.Array, gold: Gold, question: Question) -> Evaluation:
    """Each row with gold is a query for all other rows; a query for which nothing is relevant is counted and left out."""
    has_gold, kept = gold.met & _valid(gold.values), _valid(vectors)
    _check_some(has_gold & kept, has_gold)
    values, keys, vectors = (column.filter(pa.array(kept)) for column in (gold.values, keys, vectors))
    matrix = vectors.flatten().to_numpy().astype(np.float32, copy=False).reshape(len(vectors), -1)
    relevant = _by_label(values) if is_string(values.type) else _by_id(values, keys)
    queries = np.flatnonzero(has_gold[kept])
    figures = retrieval(matrix, queries, relevant.of, question.ks)
    some = figures.pop("relevant") > 0
    if not some.any():
        raise ConfigError("for no row is another row of the table relevant; does gold name rows of this table?", field="--gold")
    figures = {name: each[some] for name, each in figures.items()}
    overall = {**_means(figures), "without_relevant": int((~some).sum()), **relevant.counts}
    scores = Scores(overall, _per_label(figures, relevant.codes[queries[some]], relevant.labels))
    name = "retrieval_by_label" if relevant.labels else "retrieval"
    missing = gold.alone + int((has_gold & ~kept).sum())
    return Evaluation(question.task, name, int(some.sum()), int((~has_gold).sum()), missing, scores)


@dataclass(frozen=True)
class _Relevant:
    of: Relevance
    codes: Ints
    """int64 [N]: the label of each row; -1 where it has none or gold lists ids."""
    labels: list[str]
    """In order; empty where gold lists ids."""
    counts: Figures


def _by_label(values: pa.Array) -> _Relevant:
    labels = pc.unique(values).drop_null()
    labels = labels.take(pc.sort_indices(labels))
    codes = pc.fill_null(pc.index_in(values, labels), -1).to_numpy().astype(np.int64)
    return _Relevant(same_label(codes), codes, labels.to_pylist(), {})


def _by_id(values: pa.Array, keys: pa.Array) -> _Relevant:
    if not is_list_of(values.type, lambda t: is_string(t) or pat.is_integer(t)):
        raise misfit("retrieval", "a list of the relevant ids, or a string that relevant rows share", values.type)
    try:
        ids = items(values).cast(keys.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise misfit("retrieval", f"a list of the relevant ids, which are {keys.type}", values.type) from error
    wanted = pa.table({"id": ids, "query": pc.list_parent_indices(values)})
    pairs = wanted.join(pa.table({"id": keys, "row": np.arange(len(keys))}), "id", join_type="inner")  # ids may repeat
    both = np.stack([pairs["query"].to_numpy(), pairs["row"].to_numpy()], axis=1).astype(np.int64)
    unknown = len(ids) - int(pc.is_in(ids, keys).to_numpy(zero_copy_only=False).sum())
    return _Relevant(listed(both, len(keys)), np.full(len(keys), -1), [], {"relevant_not_in_table": unknown})


def _per_label(figures: dict[str, Floats], codes: Ints, labels: list[str]) -> dict[str, Figures]:
    """Means over the queries of each label that has any."""
    support = np.bincount(codes, minlength=len(labels)) if labels else np.empty(0, np.int64)
    sums = {name: np.bincount(codes, each, len(labels)) for name, each in figures.items()} if labels else {}
    return {
        labels[i]: {**{name: float(total[i] / support[i]) for name, total in sums.items()}, "support": int(support[i])}
        for i in np.flatnonzero(support).tolist()
    }


def _means(figures: dict[str, Floats]) -> Figures:
    return {name: float(each.mean()) for name, each in figures.items()}


def _column(rows: pa.Table, name: str) -> pa.Array:
    """A column in one piece, strings and lists in their plain layout."""
    column = rows[name]
    return column.cast(plain(column.type)).combine_chunks()


def _valid(column: pa.Array) -> Flags:
    valid: Flags = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _check_some(scored: Flags, has_gold: Flags) -> None:
    if not scored.any():
        raise ConfigError(
            f"nothing to score: {int(has_gold.sum())} of the {len(scored)} rows have gold, and none of these has a result",
            field="--gold",
        )
