"""The laws of windows, for any lengths and sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.segmentation import Segments, Windowing, resolve_overlap, segment


@st.composite
def _windowings(draw: st.DrawFn) -> Windowing:
    capacity = draw(st.integers(1, 40))
    return Windowing(capacity, draw(st.integers(0, capacity // 2)))


LENGTHS = st.lists(st.integers(0, 400), max_size=20)


def _of(segments: Segments, document: int) -> tuple[list[int], list[int], list[int]]:
    mine = segments.document == document
    return segments.start[mine].tolist(), segments.length[mine].tolist(), segments.owned[mine].tolist()


def test_worked_example() -> None:
    segments = segment(np.array([1000]), Windowing(254, 64))
    assert segments.length.tolist() == [252, 251, 251, 251, 251]
    assert segments.start.tolist() == [0, 188, 375, 562, 749]
    assert segments.owned.tolist() == [220, 187, 187, 187, 219]


@given(LENGTHS, _windowings())
def test_windows_cover_are_balanced_and_share_exactly_the_overlap(lengths: list[int], windowing: Windowing) -> None:
    segments = segment(np.array(lengths, np.int64), windowing)
    capacity, overlap = windowing.capacity, windowing.overlap
    assert segments.n_segments.sum() == len(segments.document)
    assert not segments.truncated.any()
    assert not segments.too_long.any()
    for document, n in enumerate(lengths):
        starts, sizes, _ = _of(segments, document)
        assert len(starts) == segments.n_segments[document]
        if n <= capacity:
            assert (starts, sizes) == ([0], [n])
            continue
        assert len(starts) == -(-(n - overlap) // (capacity - overlap))
        assert sum(sizes) == n + (len(sizes) - 1) * overlap
        assert max(sizes) <= capacity
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        assert starts[0] == 0
        assert starts[-1] + sizes[-1] == n
        assert all(a + size - b == overlap for a, size, b in zip(starts, sizes, starts[1:], strict=False))


@given(LENGTHS, _windowings())
def test_each_token_has_one_owner_where_it_is_farthest_from_an_edge(lengths: list[int], windowing: Windowing) -> None:
    segments = segment(np.array(lengths, np.int64), windowing)
    for document, n in enumerate(lengths):
        starts, sizes, owned = _of(segments, document)
        bounds = np.cumsum([0, *owned]).tolist()
        assert bounds[-1] == n
        for window, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            # What a window owns is a run of its tokens, in the order of the windows.
            assert start <= bounds[window] <= bounds[window + 1] <= start + size
        for before, after in zip(range(len(starts)), range(1, len(starts)), strict=False):
            # Of the tokens shared by neighbours the first ceil(O / 2) belong to the earlier.
            assert bounds[after] - starts[after] == (windowing.overlap + 1) // 2
            for token in range(starts[after], starts[before] + sizes[before]):
                to_the_end, from_the_start = starts[before] + sizes[before] - 1 - token, token - starts[after]
                assert (to_the_end >= from_the_start) == (token < bounds[after])


@given(st.integers(1, 60), st.integers(0, 400))
def test_no_token_is_in_three_windows_up_to_two_fifths_of_overlap(capacity: int, n: int) -> None:
    segments = segment(np.array([n]), Windowing(capacity, 2 * capacity // 5))
    counts = np.zeros(n + 1, int)
    for start, length in zip(segments.start, segments.length, strict=True):
        counts[start : start + length] += 1
    assert counts.max(initial=0) <= 2


@given(LENGTHS, _windowings(), st.integers(1, 5))
def test_a_cap_reads_the_first_windows_full_of_text(lengths: list[int], windowing: Windowing, cap: int) -> None:
    capped = Windowing(windowing.capacity, windowing.overlap, max_segments=cap)
    segments = segment(np.array(lengths, np.int64), capped)
    read = np.minimum(lengths, cap * (windowing.capacity - windowing.overlap) + windowing.overlap).astype(np.int64)
    alone = segment(read, windowing)
    assert (segments.n_segments <= cap).all()
    for name in ("document", "start", "length", "owned"):
        assert getattr(segments, name).tolist() == getattr(alone, name).tolist()
    assert segments.truncated.tolist() == [n > r for n, r in zip(lengths, read, strict=True)]


@given(LENGTHS, _windowings())
def test_truncate_keeps_one_window(lengths: list[int], windowing: Windowing) -> None:
    segments = segment(np.array(lengths, np.int64), Windowing(windowing.capacity, windowing.overlap, "truncate"))
    assert segments.n_segments.tolist() == [1] * len(lengths)
    assert segments.start.tolist() == [0] * len(lengths)
    assert segments.length.tolist() == segments.owned.tolist() == [min(n, windowing.capacity) for n in lengths]
    assert segments.truncated.tolist() == [n > windowing.capacity for n in lengths]


@given(LENGTHS, _windowings())
def test_error_leaves_long_documents_without_segments(lengths: list[int], windowing: Windowing) -> None:
    segments = segment(np.array(lengths, np.int64), Windowing(windowing.capacity, windowing.overlap, "error"))
    long = [n > windowing.capacity for n in lengths]
    assert segments.too_long.tolist() == long
    assert segments.n_segments.tolist() == [0 if is_long else 1 for is_long in long]
    assert segments.document.tolist() == [d for d, is_long in enumerate(long) if not is_long]
    assert not segments.truncated.any()


def test_first_points_at_each_documents_first_segment() -> None:
    segments = segment(np.array([5, 0, 30, 1]), Windowing(10, 2))
    assert segments.document[segments.first].tolist() == [0, 1, 2, 3]
    assert segments.start[segments.first].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("capacity", "overlap"), [(254, 63), (510, 64), (3, 0), (1, 0)])
def test_auto_overlap(capacity: int, overlap: int) -> None:
    assert resolve_overlap("auto", capacity) == overlap


@pytest.mark.parametrize(
    ("overlap", "capacity", "numbers"), [(6, 10, r"6 .* 10 .* 0 to 5"), (-1, 10, "-1"), (0, 0, "not 0"), ("auto", -3, "not -3")]
)
def test_overlap_that_does_not_fit_names_the_numbers(overlap: int, capacity: int, numbers: str) -> None:
    with pytest.raises(ValueError, match=numbers):
        resolve_overlap(overlap, capacity)


def test_windowing_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="overlap 6"):
        Windowing(10, 6)
    with pytest.raises(ValueError, match="max_segments is 0"):
        Windowing(10, 2, max_segments=0)
