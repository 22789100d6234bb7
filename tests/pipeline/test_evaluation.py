"""Rows, gold and results put together: what is scored, what is left out and counted, and retrieval over a table."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.evaluation import Evaluation, Question, evaluate
from pipeline.gold import GoldFile

LABEL = pa.struct([("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))])
ENTITIES = pa.list_(
    pa.struct(
        [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("score", pa.float32()), ("text", pa.string())]
    )
)
ANSWER = pa.struct([("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())])


def rows(task: pa.Array, gold: Any = None, ids: list[str] | None = None) -> pa.Table:
    """A table with a result in column `task` and gold in column `gold`, cut into two chunks."""
    ids = ids or [str(i) for i in range(len(task))]
    gold = pa.nulls(len(task)) if gold is None else gold
    table = pa.table({"id": pa.array(ids), "gold": gold, "task": task})
    return pa.concat_tables([table[:1], table[1:]])


def labelled(labels: list[str | None]) -> pa.Array:
    return pa.array([None if label is None else {"label": label, "score": 0.9} for label in labels], LABEL)


def counts(found: Evaluation) -> tuple[int, int, int]:
    return found.rows, found.without_gold, found.without_prediction


def test_rows_without_gold_or_result_are_left_out_and_counted() -> None:
    table = rows(labelled(["x", "y", None, "x"]), pa.array(["x", None, "x", "y"]))
    found = evaluate(table, Question("task", "gold"))
    assert (found.metric, counts(found)) == ("classification", (2, 1, 1))
    assert found.scores.overall["accuracy"] == 0.5


def test_a_file_counts_what_met_no_row() -> None:
    file = GoldFile(pa.array(["d", "a", "b", "z"]), pa.array(["x", "x", None, "y"]))
    found = evaluate(rows(labelled(["x", "y", None, "y"]), ids=["a", "b", "c", "d"]), Question("task", "gold.jsonl"), file)
    assert counts(found) == (2, 2, 1)
    assert found.scores.confusion == {"x": {"x": 1, "y": 1}}


def test_another_column_may_be_the_key() -> None:
    table = rows(labelled(["x", "y"])).append_column("url", [["u1", "u0"]])
    found = evaluate(table, Question("task", "gold.jsonl", on="url"), GoldFile(pa.array(["u0", "u1"]), pa.array(["y", "x"])))
    assert found.scores.overall["accuracy"] == 1


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ConfigError, match="1 of the 2 rows have gold, and none of these has a result"):
        evaluate(rows(labelled(["x", None]), pa.array([None, "x"])), Question("task", "gold"))


def test_a_null_in_a_files_gold_is_a_question_without_answer_and_no_partner_is_none() -> None:
    given = pa.array([{"answer": None}, {"answer": "x"}, {"answer": "y"}], ANSWER)
    file = GoldFile(pa.array(["0", "1"]), pa.array([None, "x"]))
    found = evaluate(rows(given), Question("task", "gold.jsonl"), file)
    assert (found.metric, counts(found)) == ("answers", (2, 1, 0))
    assert found.scores.overall == {"exact_match": 1, "f1": 1}
    assert found.scores.per_label["unanswerable"]["support"] == 1


def test_entities_are_compared_row_by_row() -> None:
    def entity(start: int, end: int, label: str) -> dict[str, Any]:
        return {"start": start, "end": end, "label": label}

    given = pa.array([[entity(0, 2, "LOC"), entity(3, 5, "PER")], [], [entity(0, 2, "LOC")], []], ENTITIES)
    gold = pa.array([[entity(0, 2, "LOC"), entity(3, 6, "PER")], [entity(0, 2, "LOC")], None, []])
    found = evaluate(rows(given, gold), Question("task", "gold"))
    assert (found.metric, counts(found)) == ("entities", (3, 1, 0))
    assert found.scores.overall["micro_precision"] == 0.5
    assert found.scores.overall["micro_recall"] == pytest.approx(1 / 3)
    assert found.scores.per_label["LOC"] == {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}


def test_the_report_is_one_json_object() -> None:
    found = evaluate(rows(labelled(["x", "y"]), pa.array(["x", "x"])), Question("task", "gold")).as_dict()
    assert list(found) == ["task", "metric", "rows", "without_gold", "without_prediction", "overall", "per_label", "confusion"]
    assert json.loads(json.dumps(found)) == found
    scores = pa.array([0.1, 0.2], pa.float32())
    assert "confusion" not in evaluate(rows(scores, pa.array([0, 1])), Question("task", "gold")).as_dict()


def vectors(values: list[list[float] | None], type_: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, pa.list_(type_ or pa.float32(), 2))


SIDES = vectors([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [0.7, 0.8]])


def test_listed_ids_are_what_vectors_should_find() -> None:
    gold = pa.array([["2"], ["4", "9"], None, ["3"], ["nobody"]])
    found = evaluate(rows(SIDES, gold), Question("task", "gold", ks=(1, 2)))
    # Row 3 is named as relevant for itself alone, and what row 4 names is not there.
    assert (found.metric, counts(found)) == ("retrieval", (2, 1, 0))
    assert found.scores.overall == {
        "recall@1": 0.5,
        "recall@2": 1.0,
        "mrr": 0.75,
        "ndcg@10": pytest.approx((1 + 0.6309297535714575) / 2),
        "without_relevant": 2,
        "relevant_not_in_table": 2,
    }
    assert found.scores.per_label == {}


def test_a_repeated_id_names_all_its_rows() -> None:
    gold = pa.array([["b"], None, None, None, None])
    found = evaluate(rows(SIDES, gold, ["a", "b", "b", "c", "d"]), Question("task", "gold", ks=(1, 4)))
    assert (found.scores.overall["recall@1"], found.scores.overall["recall@4"]) == (0.5, 1)


def test_a_label_makes_its_rows_relevant_for_each_other() -> None:
    table = rows(SIDES, pa.array(["x", "y", "x", "y", "alone"]))
    found = evaluate(table, Question("task", "gold", ks=(1,)))
    assert (found.metric, counts(found)) == ("retrieval_by_label", (4, 0, 0))
    assert found.scores.overall == {"recall@1": 1, "mrr": 1, "ndcg@10": 1, "without_relevant": 1}
    assert found.scores.per_label == {name: {"recall@1": 1, "mrr": 1, "ndcg@10": 1, "support": 2} for name in ("x", "y")}


def test_rows_without_label_are_found_and_ask_nothing() -> None:
    values = vectors([[1, 0], [1, 0], [1, 0.1]], pa.float16())
    found = evaluate(rows(values, pa.array(["x", None, "x"])), Question("task", "gold", ks=(1,)))
    assert (counts(found), found.scores.overall["mrr"]) == ((2, 1, 0), 0.75)


def test_rows_without_vector_are_neither_asked_nor_found() -> None:
    found = evaluate(rows(vectors([[1, 0], None, [1, 0.1]]), pa.array(["x", "x", "x"])), Question("task", "gold", ks=(1,)))
    assert (counts(found), found.scores.overall["recall@1"]) == ((2, 0, 1), 1)


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        (pa.array([1.0] * 5), "gold is double; for retrieval it is a list of the relevant ids"),
        (pa.array([[0.5]] * 5), "for retrieval"),
        (pa.array([["9"]] * 5), "for no row is another row of the table relevant"),
        (pa.nulls(5), "0 of the 5 rows have gold"),
    ],
)
def test_gold_that_asks_nothing_of_vectors_is_refused(gold: pa.Array, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(rows(SIDES, gold), Question("task", "gold"))


def test_ids_may_be_numbers() -> None:
    found = evaluate(rows(SIDES, pa.array([[2], None, None, None, None])), Question("task", "gold"))
    assert found.scores.overall["mrr"] == 1
