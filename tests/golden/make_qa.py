"""Write qa_model/ and qa.json: answers of transformers' own question-answering pipeline, which releases from 5.0 lack.

The models are random and small, made by this project's tests; the answers come from transformers 4.57.1. From the root:

    .venv/bin/python -m tests.golden.make_qa models
    .venv/bin/pip install --no-deps --target /tmp/tf457 transformers==4.57.1 'huggingface_hub<1' 'tokenizers<0.23'
    PYTHONPATH=/tmp/tf457 .venv/bin/python -m tests.golden.make_qa answers
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = HERE / "qa_model"
FAMILIES = ("bert", "roberta")

QUESTIONS = ("queen of the sea?", "What music, king?", "\u4eba zebra")
SHORT = (
    "moon",
    "the river bank",
    "The King and queen of the sea.",
    "rainbow over paintings, moonlight in x-ray rooms",
    "\u4eba\u5929 zebra 42",
    "\u706b\u6c34\u5c71\u5ddd\u65e5\u6708 music",
    "caf\u00e9 na\u00efve \u00c9clair queen",
    "music music Music MUSIC",
    "a [SEP] b </s> c [CLS] d",
    "  spaces   before  and after  ",
    "moon, sun; star! (planet)",
    "don't stop: the king's engine isn't here",
    "emoji \U0001f600 and light",
    "line one\nline two\n\nline three",
    "star" * 9,
    "1984 was 12.5% wet",
    "tree " * 20,
    "Query: passage; represent sentence",
    "island_storm under_score",
    "bread/milk/fruit apple-horse dog",
)
LONG = (60, 97, 130, 200, 260, 333)
"""Words of the long contexts."""
LETTERS = ("moonlight", "zebra,", "Queen", "caf\u00e9", "x-ray", "\u4eba\u5929", "42nd")
"""Put among known words, so that words of many tokens lie at the edges of windows."""


def contexts() -> list[str]:
    """The short contexts, then the long ones."""
    from tests.tiny_tokenizers import WORDS

    chance = random.Random(0)
    return [*SHORT, *(" ".join(chance.choice([*WORDS, *LETTERS * 3]) for _ in range(words)) for words in LONG)]


def settings(short: bool) -> list[dict[str, Any]]:
    """What the pipeline is called with."""
    variants: list[dict[str, Any]] = [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 1, "handle_impossible_answer": True},
        {"top_k": 3, "handle_impossible_answer": True, "max_answer_len": 4},
    ]
    windows = [{}] if short else [{"max_seq_len": 64, "doc_stride": 8}, {"max_seq_len": 40, "doc_stride": 3}]
    defaults = {"max_answer_len": 15, "handle_impossible_answer": False, "max_seq_len": 64, "doc_stride": 16}
    return [{**defaults, **variant, **window} for variant in variants for window in windows]


def make_models() -> None:
    """Write the models; needs this project's own transformers."""
    from tests.tiny import tiny_task

    shutil.rmtree(MODELS, ignore_errors=True)
    for seed, family in enumerate(FAMILIES):
        tiny_task(MODELS / family, "QuestionAnswering", model_type=family, hidden_size=16, seed=seed)


def make_answers() -> None:
    """Write the answers; needs transformers 4.57.1."""
    import transformers

    if transformers.__version__ != "4.57.1":
        raise SystemExit(f"transformers is {transformers.__version__}, not 4.57.1")
    cases = []
    for family in FAMILIES:
        pipeline: Any = transformers.pipeline
        answer = pipeline("question-answering", model=str(MODELS / family), device="cpu")
        for i, context in enumerate(contexts()):
            question = QUESTIONS[i % len(QUESTIONS)]
            for chosen in settings(short=i < len(SHORT)):
                found = answer(question=question, context=context, **chosen)
                answers = found if isinstance(found, list) else [found]
                cases.append({"model": family, "context": i, "question": question, "settings": chosen, "answers": answers})
    lines = ",\n".join(json.dumps(case) for case in cases)
    contexts_ = json.dumps(contexts(), indent=1)
    (HERE / "qa.json").write_text(f'{{"contexts": {contexts_},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    {"models": make_models, "answers": make_answers}[sys.argv[1]]()
