"""The benchmark of top-k attention measures what it says: more keys come nearer to full attention, up to the same."""

from __future__ import annotations

import pytest

from benchmarks.topk import KS, compare, reviews, sentiment, speed_and_cosines


@pytest.mark.slow
def test_the_tables_of_speed_and_cosines() -> None:
    _, speed, _, cosines = speed_and_cosines(tokens=128, rounds=1, sizes=(64,))
    assert len(speed.splitlines()) == 3
    means = [float(cell.split(" / ")[0]) for cell in cosines.splitlines()[2].split("|")[2:-1]]
    assert len(means) == len(KS)
    assert means == sorted(means)
    assert means[0] < 0.95
    assert means[-1] == 1  # 64 keys of windows of 64 tokens


def test_labels_come_nearer_with_more_keys() -> None:
    texts, gold = reviews()
    rows = compare(sentiment(), texts[:40], 128)
    assert [k for k, *_ in rows] == ["full", *KS]
    agreed = [near.mean() for _, near, _, _ in rows]
    assert agreed[0] == 1
    assert agreed[-1] >= 0.95 > agreed[1]
    ratios = [float(ratio) for _, _, ratio, _ in rows]
    assert ratios[0] == 1
    assert ratios[1:] == sorted(ratios[1:])
    assert len(gold) == len(texts)
