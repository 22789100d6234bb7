"""Answers equal those of transformers' pipeline on one window, and with `merge: hf` on any number of windows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from operators.encoders import torch as backend
from operators.encoding import Encode
from operators.heads.question_answering import Config, Head, best_spans
from operators.inputs import Companions, Inputs, make_inputs
from operators.models.layout import read_layout
from operators.schema import TEXT
from operators.segmentation import Windowing
from operators.tokenization import Tokenizer
from tests.tiny import MODEL_TYPES, WORDS, tiny_encoder, tiny_task

GOLDEN = Path(__file__).parents[2] / "golden"
RECORDED = json.loads((GOLDEN / "qa.json").read_text())
"""Made by golden/make_qa.py."""
SHORT = [text for text in RECORDED["contexts"] if len(text) < 150]


@cache
def _encoder(path: Path) -> Any:
    return backend.load(read_layout(path), "cpu", "fp32")


class Reader:
    """A model put together as a worker does it, with windows of `size` tokens, specials and question included."""

    def __init__(self, path: Path, size: int = 64, overlap: int = 8, policy: Any = "window", **settings: Any) -> None:
        layout = read_layout(path)
        self.head = Head(Config(**{"question": "queen?"} | settings), layout)
        self.tokenizer = Tokenizer(layout.transformer_dir)
        frame = self.tokenizer.pair_frame()
        self.windowing = Windowing(size - frame.size, overlap, policy, style=self.head.windows)
        self.encode = Encode(_encoder(path), {"task": self.head}, frame, 256)

    def inputs(self, texts: Sequence[str], questions: Sequence[str]) -> Inputs:
        """Documents with a question each."""
        asked = self.tokenizer.tokenize(pa.array(questions, pa.large_string()))
        companions = Companions(np.arange(len(texts)), asked.ids, asked.bounds, first=True)
        column = pa.array(texts, pa.large_string())
        tokens = self.tokenizer.tokenize(column, offsets=True)
        return make_inputs(tokens, self.windowing, companions, pa.table({TEXT: column}))

    def ask(self, texts: Sequence[str], *questions: str) -> list[Any]:
        """The column as Python values, with the same question for all or one for each; no document may fail."""
        asked = list(questions) if len(questions) == len(texts) else [*(questions or ("queen?",))] * len(texts)
        encoded = self.encode(self.inputs(texts, asked))
        assert not encoded.failed
        assert encoded.values["task"].type == self.head.type
        values: list[Any] = encoded.values["task"].to_pylist()
        for text, value in zip(texts, values, strict=True):
            for found in value if isinstance(value, list) else [value]:
                assert found["start"] is None or found["answer"] == text[found["start"] : found["end"]]
        return values


def same(ours: Any, theirs: list[dict[str, Any]]) -> None:
    """The pipeline has "" for no answer, and fills up with answers of score 0 where there are too few."""
    found = ours if isinstance(ours, list) else [ours]
    expected = [a for a in theirs if a["score"] > 0]
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        if other["answer"]:
            assert (mine["answer"], mine["start"], mine["end"]) == (other["answer"], other["start"], other["end"])
            assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
        else:
            assert set(mine.values()) == {None}


def _recorded(merge: str) -> dict[tuple[str, str], list[Any]]:
    """The recorded cases by model and settings; for `max` those of one window."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for case in RECORDED["cases"]:
        if merge == "hf" or RECORDED["contexts"][case["context"]] in SHORT:
            groups.setdefault((case["model"], json.dumps(case["settings"])), []).append(case)
    return groups


@pytest.mark.parametrize(
    ("merge", "model", "settings"), [(merge, *group) for merge in ("hf", "max") for group in _recorded(merge)]
)
def test_like_the_recorded_pipeline(merge: str, model: str, settings: str) -> None:
    chosen = json.loads(settings)
    cases = _recorded(merge)[model, settings]
    reader = Reader(
        GOLDEN / "qa_model" / model,
        chosen["max_seq_len"],
        chosen["doc_stride"],
        merge=merge,
        top_k=chosen["top_k"],
        max_answer_length=chosen["max_answer_len"],
        unanswerable=chosen["handle_impossible_answer"],
    )
    texts = [RECORDED["contexts"][case["context"]] for case in cases]
    for case, ours in zip(cases, reader.ask(texts, *(case["question"] for case in cases)), strict=True):
        same(ours, case["answers"])


def test_the_recorded_cases_are_worth_comparing() -> None:
    assert len(RECORDED["cases"]) == 256
    answers = [answer for case in RECORDED["cases"] for answer in case["answers"]]
    assert len({answer["answer"] for answer in answers}) > 100
    assert any(case["settings"]["top_k"] == 1 and not case["answers"][0]["answer"] for case in RECORDED["cases"])
    long = [case for case in RECORDED["cases"] if RECORDED["contexts"][case["context"]] not in SHORT]
    assert max(answer["start"] for case in long for answer in case["answers"]) > 1000


def by_hand(path: Path, question: str, context: str) -> tuple[float, int, int]:
    """The best answer of one window and its score, by transformers' model and loops over tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(str(path)), AutoModelForQuestionAnswering.from_pretrained(str(path)).eval()
    encoded = tokenizer(question, context, return_tensors="pt")
    with torch.inference_mode():
        output = model(**encoded)
    body = [i for i, sequence in enumerate(encoded.sequence_ids()) if sequence == 1]
    kept = [0, *body]
    starts, ends = (dict(zip(kept, logits[0, kept].softmax(0).tolist(), strict=True)) for logits in output.to_tuple()[:2])
    spans = sorted(((starts[i] * ends[j], i, j) for i in body for j in body if i <= j < i + 15), reverse=True)[:12]
    scores: dict[str, float] = {}
    places: dict[str, tuple[int, int]] = {}
    for score, i, j in spans:
        first, last = (encoded.word_to_chars(encoded.token_to_word(at), sequence_index=1) for at in (i, j))
        text = context[first.start : last.end].lower()
        scores[text] = scores.get(text, 0) + score
        places.setdefault(text, (first.start, last.end))
    best = max(scores, key=lambda text: scores[text])
    return scores[best], *places[best]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_like_transformers_own_model(model_type: str, tmp_path: Path) -> None:
    path = tiny_task(tmp_path, "QuestionAnswering", model_type=model_type)
    texts = ["the river bank", "The King and queen of the sea, moonlight", "zebra \u4eba\u5929 42", "paint " * 20]
    for text, ours in zip(texts, Reader(path).ask(texts, "what is a queen?"), strict=True):
        score, start, end = by_hand(path, "what is a queen?", text)
        assert ours["score"] == pytest.approx(score, abs=1e-5)
        assert (ours["answer"], ours["start"], ours["end"], ours["window"]) == (text[start:end], start, end, 0)


def test_the_type_is_the_contract() -> None:
    layout = read_layout(GOLDEN / "qa_model" / "bert")
    answer = pa.struct(
        [
            ("answer", pa.string()),
            ("score", pa.float32()),
            ("start", pa.int32()),
            ("end", pa.int32()),
            ("window", pa.int32()),
        ]
    )
    assert Head(Config(question="a"), layout).type == answer
    assert Head(Config(question="a", top_k=2), layout).type == pa.list_(answer)
    assert Head(Config(question_column="q"), layout).columns == {"q": pa.string()}


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without layers that takes what stands from "king" to "queen" for the answer, else [CLS], "no answer"."""
    path = tiny_task(tmp_path_factory.mktemp("finder"), "QuestionAnswering", num_hidden_layers=0)
    model: Any = AutoModelForQuestionAnswering.from_pretrained(str(path))
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1)
        for place, token in enumerate(["[CLS]", "king", "queen"]):
            model.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(token), place] = 1
        model.qa_outputs.weight[:, 0] = 1
        model.qa_outputs.weight[0, 1] = model.qa_outputs.weight[1, 2] = 2
    model.save_pretrained(path)
    return path


def story(words: int, *answer: str, at: int = 0) -> str:
    """Words without an answer in them, but for `answer` behind the first `at`."""
    plain = [word for word in WORDS if word not in ("king", "queen")]
    told = np.random.default_rng(words).choice(plain, words).tolist()
    return " ".join([*told[:at], *answer, *told[at:]])


@pytest.mark.parametrize("merge", ["max", "hf"])
def test_an_answer_in_the_last_window_alone_is_found(merge: str, finder: Path) -> None:
    text = story(300, "king", "light", "queen", at=300)
    reader = Reader(finder, 32, merge=merge)
    last = reader.inputs([text], ["queen?"]).segments.n_segments[0] - 1
    (found,) = reader.ask([text])
    assert (found["answer"], found["end"], found["window"]) == ("king light queen", len(text), last)
    assert found["score"] > 0.9
    assert last >= 10
    (cut,) = Reader(finder, 32, policy="truncate", merge=merge).ask([text])
    assert cut["answer"] != "king light queen"
    assert cut["score"] < 0.05


def test_an_answer_is_found_whole_wherever_windows_are_cut(finder: Path) -> None:
    texts = [story(90, "king", "light", "queen", at=at) for at in range(91)]
    for found in Reader(finder, 32).ask(texts):
        assert found["answer"] == "king light queen"
        assert found["score"] > 0.9


def test_no_answer_where_the_document_has_none(finder: Path) -> None:
    texts = [story(200), story(200, "king", "queen", at=199), "", story(5)]
    nothing = dict.fromkeys(("answer", "score", "start", "end", "window"))
    one = Reader(finder, 32, unanswerable=True).ask(texts)
    assert (one[0], one[2], one[3]) == (nothing, nothing, nothing)
    assert one[1]["answer"] == "king queen"
    several = Reader(finder, 32, unanswerable=True, top_k=3).ask(texts)
    assert [len(found) for found in several] == [3, 3, 1, 3]
    assert several[0][0] == several[2][0] == several[3][0] == nothing
    assert several[1][0]["answer"] == "king queen"
    always = Reader(finder, 32).ask(texts)
    assert [found["answer"] is None for found in always] == [False, False, True, False]
    assert Reader(finder, 32, top_k=3).ask([""]) == [[]]


def test_scores_of_one_span_in_two_windows_are_not_added_up(finder: Path) -> None:
    text = story(60, "king", "queen", at=26)
    there = [Reader(finder, 40, 16, merge=merge).ask([text])[0] for merge in ("max", "hf")]
    assert [found["answer"] for found in there] == ["king queen"] * 2
    assert there[0]["score"] <= 1
    assert there[1]["score"] > 1.5


def test_results_do_not_depend_on_packs_or_order() -> None:
    path = GOLDEN / "qa_model" / "roberta"
    texts = ["", *RECORDED["contexts"]]
    reader = Reader(path, top_k=2)
    forwards, backwards = reader.ask(texts), reader.ask(texts[::-1])[::-1]
    alone = [reader.ask([text])[0] for text in texts[::7]]
    for ours, theirs in [*zip(forwards, backwards, strict=True), *zip(forwards[::7], alone, strict=True)]:
        assert [(a["start"], a["end"], a["window"]) for a in ours] == [(a["start"], a["end"], a["window"]) for a in theirs]
        assert [a["score"] for a in ours] == pytest.approx([a["score"] for a in theirs], abs=1e-5)
    assert reader.ask([]) == []


def test_numbers_that_are_not_finite_fail_their_document_alone(finder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForQuestionAnswering.from_pretrained(str(finder))
    tokenizer = AutoTokenizer.from_pretrained(str(finder))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("moon")] = torch.nan
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path)
    reader = Reader(tmp_path)
    encoded = reader.encode(reader.inputs(["king queen", "king moon queen", ""], ["queen?"] * 3))
    assert {document: failure.reason for document, failure in encoded.failed.items()} == {1: "task_failed"}
    assert encoded.values["task"].is_null().to_pylist() == [False, True, False]
    assert encoded.values["task"][0]["answer"].as_py() == "king queen"


Shares = npt.NDArray[np.float32]


@st.composite
def shares(draw: st.DrawFn) -> tuple[Shares, list[int]]:
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([2, 1000]))  # few levels give many equal scores
    drawn = np.random.default_rng(seed).integers(0, levels, (2, sum(lengths))) / levels
    return drawn.astype(np.float32), lengths


@given(shares(), st.integers(1, 9), st.integers(1, 12))
def test_best_spans_like_a_loop(drawn: tuple[Shares, list[int]], longest: int, most: int) -> None:
    given_, lengths = drawn
    results = best_spans(torch.from_numpy(given_), np.array(lengths, np.int64), longest, most)
    scores, first, last = (result.numpy() for result in results)
    begin = 0
    for window, length in enumerate(lengths):
        start, end = given_[:, begin : begin + length]
        begin += length
        spans = [(-start[i] * end[j], i, j) for i in range(length) for j in range(i, min(i + longest, length))]
        expected = [(-score, i, j) for score, i, j in sorted(spans)][:most]
        found = list(zip(scores[window], first[window], last[window], strict=True))
        assert found[: len(expected)] == expected
        assert [score for score, _, _ in found[len(expected) :]] == [-1] * (most - len(expected))


def test_similarity_is_whether_the_answers_are_the_same() -> None:
    layout = read_layout(GOLDEN / "qa_model" / "bert")
    one, several = Head(Config(question="a"), layout), Head(Config(question="a", top_k=2), layout)
    a, b, none = {"start": 1, "end": 2, "score": 0.5}, {"start": 1, "end": 3, "score": 0.5}, dict[str, Any]()
    values = pa.array([a, b, none, none], one.type)
    assert one.similarity(values, pa.array([{**a, "score": 0.4}, a, none, a], one.type)).tolist() == [1, 0, 1, 0]
    lists = pa.array([[a, b], [a], []], several.type)
    assert several.similarity(lists, pa.array([[b, a], [a], []], several.type)).tolist() == [0, 1, 1]


def test_models_of_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a model for QuestionAnswering"):
        Head(Config(question="a"), read_layout(tiny_encoder(tmp_path / "plain")))
    path = tiny_task(tmp_path / "three", "QuestionAnswering", id2label={0: "a", 1: "b", 2: "c"})
    with pytest.raises(ValueError, match="the model has 3 labels"):
        Head(Config(question="a"), read_layout(path))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"question": "a", "question_column": "b"},
        {"question": ""},
        {"question": "a", "top_k": 0},
        {"question": "a", "max_answer_length": 0},
        {"question": "a", "merge": "sum"},
        {"question": "a", "max_answer_len": 15},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**settings)
