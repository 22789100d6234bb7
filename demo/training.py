"""What both training scripts share: a character tokenizer, batches of like length, steps with a warm-up, the command line."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, PreTrainedModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MIN_COUNT = 3
"""Rarer characters are [UNK]."""
WARM_UP = 0.06
"""Share of the steps in which the learning rate rises; then it falls to nothing."""


def character_tokenizer(texts: Iterable[str], max_tokens: int) -> BertTokenizer:
    """BERT's tokenizer with single characters as its pieces, the frequent ones first. Only ideographs always begin a word."""
    counts = Counter(char for text in texts for char in text if not char.isspace())
    chars = [char for char, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= MIN_COUNT]
    pieces = [*SPECIAL, *chars, *(f"##{char}" for char in chars if not "\u4e00" <= char <= "\u9fff")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=False, strip_accents=False, model_max_length=max_tokens)


def batches(lengths: Sequence[int], budget: int, rng: random.Random) -> list[list[int]]:
    """Indices of rows of about equal length, at most `budget` tokens with padding, in random order."""
    noise = [rng.random() * 8 for _ in lengths]
    found: list[list[int]] = [[]]
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index] + noise[index]):
        longest = max(longest, lengths[index])
        if found[-1] and longest * (len(found[-1]) + 1) > budget:
            found.append([])
            longest = lengths[index]
        found[-1].append(index)
    rng.shuffle(found)
    return found


class Optimizer:
    """AdamW whose learning rate rises to `rate`, then falls, over `steps` steps."""

    def __init__(self, model: PreTrainedModel, rate: float, steps: int) -> None:
        peak = WARM_UP * steps
        self.parameters = list(model.parameters())
        self.adam = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: max(0.01, min((step + 1) / peak, (steps - step) / (steps - peak)))
        )

    def step(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad()


def arguments(description: str, out: Path, epochs: int) -> tuple[Path, int]:
    """The directory for the model and the number of epochs, by the command line; torch is set to one thread, to be repeatable."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--epochs", type=int, default=epochs)
    given = parser.parse_args()
    torch.set_num_threads(1)
    return given.out, given.epochs


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """Print the figures, and leave them beside the model."""
    text = json.dumps(metrics, indent=2)
    print(text)
    (out / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
