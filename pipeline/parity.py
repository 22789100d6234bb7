"""The parity self-test: a sample of documents is encoded again by the reference, and the results are compared.

The reference is transformers as it is, in float32, padded and with full attention, with the same tokens, windows and heads. What
it finds travels in the records' statistics, as `parity:<task>:<name>`, so that a run that goes on after a failure knows what the
pieces before it found.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.encoding import Encode, Encoder
from pipeline.ledger.records import Record
from pipeline.preparing import Preparer
from pipeline.recipe import ModelRecipe, Pass, Recipe, Tolerance, make_heads

_BUDGET = 4096
"""Tokens that the reference encodes at once."""


@dataclass(frozen=True)
class Finding:
    """What the self-test found for one task."""

    documents: int
    apart: int
    similarity: float | None
    """Mean over the documents: cosine of vectors, share of labels, entities or answers that agree; None without documents."""

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the task may be published."""
        return self.apart <= tolerance.apart * self.documents


class Parity:
    """The reference of every pass of a recipe."""

    def __init__(self, recipe: Recipe, preparer: Preparer) -> None:
        self._recipe = recipe
        self._preparer = preparer
        reference = importlib.import_module("operators.encoders.torch")  # here, since the driver reads findings alone
        encoders: dict[ModelRecipe, Encoder] = {}
        self._passes: list[tuple[Pass, Encode]] = []
        for share in recipe.passes:
            layout = preparer.layout(share.model)
            full = share.model.full  # so that what top-k attention costs shows
            if full not in encoders:
                encoders[full] = reference.load(layout, recipe.device, "fp32", padded=True)
            # The frame too is made anew, from the model's own tokenizer.
            tokenizer = preparer.tokenizer(share.model, share.view.tokenization.prompt)
            frame = tokenizer.pair_frame() if share.view.companion else tokenizer.frame
            encode = Encode(encoders[full], make_heads(share, layout), frame, _BUDGET)
            self._passes.append((share, encode))

    def compare(self, documents: pa.Table, results: dict[str, pa.Array], failed: Iterable[int], size: int) -> dict[str, float]:
        """Statistics of `size` of the prepared `documents`, whose `results` are by task; rows in `failed` are left out."""
        good = np.setdiff1d(np.arange(documents.num_rows), list(failed))
        chosen = pa.array(good[np.unique(np.linspace(0, len(good) - 1, min(size, len(good))).astype(int))])
        statistics: dict[str, float] = {}
        for share, encode in self._passes:
            encoded = encode(self._preparer.inputs(documents.take(chosen), share.view))
            kept = np.setdiff1d(np.arange(len(chosen)), list(encoded.failed))
            for task, values in encoded.values.items():
                ours = results[task].take(chosen)
                similarity = encode.heads[task].similarity(ours.take(pa.array(kept)), values.take(pa.array(kept)))
                apart = int((similarity < self._recipe.tolerance.similarity).sum()) + len(encoded.failed)
                found = {"documents": len(chosen), "apart": apart, "similarity": float(similarity.sum())}
                statistics |= {f"parity:{task}:{name}": value for name, value in found.items()}
        return statistics


def findings(records: Iterable[Record]) -> dict[str, Finding]:
    """What the self-test found in these pieces, by task; empty where it did not run."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        for name, value in record.statistics.items():
            if name.startswith("parity:"):
                task, _, kind = name.removeprefix("parity:").rpartition(":")
                sums[task][kind] += value
    return {
        task: Finding(int(s["documents"]), int(s["apart"]), s["similarity"] / s["documents"] if s["documents"] else None)
        for task, s in sums.items()
    }
