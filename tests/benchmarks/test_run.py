"""The engines of the benchmark make the same vectors of the same windows, and the report has a row for each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import ceiling, engines, run, shapes, workers
from benchmarks.engines import Way
from benchmarks.reporting import Usage
from benchmarks.workers import Result, Variant, cosines
from operators.flops import flops
from operators.models.layout import read_layout
from operators.tokenization import Tokenizer
from pipeline.placement import Resources, Wish, place
from tests.tiny import WORDS, tiny_sentence_transformer

TEXTS = [" ".join(WORDS[i % len(WORDS)] for i in range(n)) for n in (3, 40, 100)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"), max_seq_length=32)


def test_windows_are_whole_words_and_hold_all_tokens(model: Path) -> None:
    tokenizer = Tokenizer(read_layout(model).transformer_dir)
    windows = engines.windows(TEXTS, tokenizer, 30)
    assert " ".join(windows).split() == " ".join(TEXTS).split()
    lengths, whole = (tokenizer.tokenize(pa.array(texts, pa.large_string())).lengths for texts in (windows, TEXTS))
    assert lengths.sum() == whole.sum()
    assert lengths.max() <= 30


def test_engines_agree(model: Path) -> None:
    windows = engines.windows(TEXTS, Tokenizer(read_layout(model).transformer_dir), 30)
    reference = engines.sentence_transformers(windows, model, "float32")()
    ours = [engines.tidemill(windows, model, Way(lanes=lanes))() for lanes in (1, 2)]
    for values in (engines.transformers_sorted(windows, model)(), *ours):
        assert cosines(values, reference)[1] > 0.99999


def test_the_reference_is_the_first_engine(model: Path, tmp_path: Path) -> None:
    variants = engines.variants(model, tmp_path)
    assert variants[0].name == engines.REFERENCE
    assert len({v.name for v in variants}) == len(variants)


@pytest.mark.parametrize(("cores", "shipped"), [(1, (1, 1)), (2, (1, 2)), (4, (1, 4)), (64, (16, 4))])
def test_as_shipped_is_a_worker_for_four_cores(cores: int, shipped: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CORES", cores)
    found = place("cpu", Resources(cores, 0, 2**40), Wish("auto", "auto", 2**20, 100, 100))
    assert (found.workers, found.threads) == shipped
    first, *others = engines.ours("m:f", Path("model"), "bf16")
    assert (first.processes, first.arguments["way"].lanes) == shipped
    assert "as shipped" in first.name
    assert [(v.processes, v.arguments["way"].lanes) for v in others] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("shape", ["bert-base", "modernbert-base", "deberta-v3-base"])
def test_shapes_agree(shape: str, tmp_path: Path) -> None:
    model = shapes.make_model(tmp_path, shape, layers=1)
    windows = [window[:40] for window in shapes.make_windows(300)]
    reference = shapes.transformers_padded(windows, model, by_length=False)()
    for lanes in (1, 2):
        values = shapes.tidemill(windows, model, Way(lanes=lanes))()
        assert [len(v) for v in values] == [len(window) for window in windows]
        assert shapes.apart(values, reference)[1] < 1e-5
    config = json.loads((model / "config.json").read_text())
    assert flops(config, np.array([len(window) for window in windows]))


def test_windows_of_shapes_are_mixed() -> None:
    lengths = [len(window) for window in shapes.make_windows(20_000)]
    assert min(lengths) < 32
    assert max(lengths) == 512
    assert sum(lengths) == pytest.approx(20_000, rel=0.03)


def test_matrix_products_have_a_rate_for_each_precision_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "_SECONDS", 0.01)
    measure = ceiling.measure([], 64, 128)
    values = [measure() for _ in range(3)][-1]
    assert all(rate > 0 for rates in values for rate in rates)
    found = ceiling.by_precision(values)
    assert found == {"fp32": [values[1][0], values[2][0]], "bf16": [values[1][1], values[2][1]]}
    assert "bf16 200 GFLOP/s (runs: 100 200 300)" in ceiling.describe({"bf16": [100.0, 200.0, 300.0]})
    assert ceiling.by_precision([]) == {}
    assert "not measured" in ceiling.describe({})


def test_a_row_for_each_engine() -> None:
    usage = Usage(wall=2.0, cpu=3.8, others=0.0, peak_bytes=2**20)
    results = [
        Result(Variant("reference fp32", "m:f"), [usage], [1]),
        Result(Variant("ours bf16", "m:f"), [Usage(1.0, 1.9, 0.0, 2**20)], [1]),
        Result(Variant("missing fp32", "m:f"), reason="not installed"),
        Result(ceiling.variant(1, 1), [usage], [[1.0, 1.0], [90.0, 200.0], [100.0, 200.0], [300.0, 200.0]]),
    ]
    text = "\n".join(run._speed(results, np.array([1000, 1000]), 1e11, (("cosine mean", "min"), [("1", "1")] * 3)))
    assert "| reference fp32 | 1,000 | 1000 | 1.00 | 50 | 50% | 1 | 1 | 1.90 |" in text
    assert "| ours bf16 | 2,000 | 2000 | 2.00 | 100 | 50% | 1 | 1 | 1.90 |" in text
    assert "* missing fp32 did not run: not installed" in text
