"""JSONL streams: every line in exactly one span and one piece, wherever the cuts fall and however blocks are read."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.ledger.pieces import Shard, Span
from pipeline.source import jsonl
from pipeline.source.jsonl import Chunk, Lines, cut_chunks, cut_spans, first_lines, head, read_lines
from pipeline.source.storage import Corrupt

MAX_LINE = 50
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
contents = st.lists(
    st.sampled_from([b"{}", b"a", b"\n", b"\n\n", b"\r\n", b" ", b"\t", b"long " * 4, b"x" * 60, b"\xef\xbb\xbf"])
).map(b"".join)


def expected(content: bytes) -> list[tuple[int, bytes]]:
    """Offset and bytes of each line that is not blank; those above the limit without their bytes."""
    lines, offset = [], 0
    for line in content.split(b"\n"):
        bare = (line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line).strip(b" \t\r")
        if bare:
            lines.append((offset, bare if len(line) <= MAX_LINE else b""))
        offset += len(line) + 1
    return lines


def found(blocks: list[Lines] | tuple[Lines, ...]) -> list[tuple[int, bytes]]:
    return [
        (int(row), block.data[a:b] if size <= MAX_LINE else b"")
        for block in blocks
        for row, size, a, b in zip(block.rows, block.sizes, block.starts, block.stops, strict=True)
    ]


@many
@given(contents, st.integers(1, 40), st.integers(1, 30))
@example(b"\n" * 10, 3, 1)
@example(b"x" * 200 + b"\n{}", 7, 5)
@example(b"\xef\xbb\xbf{}\r\n{}", 3, 2)
def test_ranges_of_any_size_give_each_line_once(
    shard_of: Callable[[Path], Shard], new_path: Callable[[str], Path], content: bytes, piece_bytes: int, block: int
) -> None:
    path = new_path(".jsonl")
    path.write_bytes(content)
    spans = cut_spans(shard_of(path), piece_bytes)
    assert [s.start for s in spans] == [0, *(s.stop for s in spans[:-1])]
    assert spans[-1].stop == len(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_BLOCK", block)
        by_span = [found(list(read_lines(span, MAX_LINE, {}))) for span in spans]
    assert [line for lines in by_span for line in lines] == expected(content)
    for span, lines in zip(spans, by_span, strict=True):
        assert all(span.start <= row < (span.stop or 0) for row, _ in lines)


def _chunks(path: Path, shard_of: Callable[[Path], Shard], piece_bytes: int) -> list[Chunk]:
    (span,) = cut_spans(shard_of(path), piece_bytes)
    return list(cut_chunks(read_lines(span, MAX_LINE, {}), span))


@many
@given(contents, st.integers(1, 40), st.integers(1, 5), st.integers(1, 30))
def test_chains_give_each_line_once_and_cut_by_content_alone(
    shard_of: Callable[[Path], Shard],
    new_path: Callable[[str], Path],
    content: bytes,
    piece_bytes: int,
    max_rows: int,
    block: int,
) -> None:
    path = new_path(".jsonl.gz")
    path.write_bytes(gzip.compress(content, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "MAX_ROWS", max_rows)
        chunks = _chunks(path, shard_of, piece_bytes)
        patch.setattr(jsonl, "_BLOCK", block)
        again = _chunks(path, shard_of, piece_bytes)
    assert [line for c in chunks for line in found(c.lines)] == expected(content)
    assert [(c.index, c.start, c.stop, c.last, found(c.lines)) for c in chunks] == [
        (c.index, c.start, c.stop, c.last, found(c.lines)) for c in again
    ]
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert [c.last for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    assert chunks[-1].stop == len(content)
    for chunk in chunks:
        lines = found(chunk.lines)
        assert len(lines) <= max_rows
        assert all(row < chunk.start + piece_bytes for row, _ in lines)
        assert not lines or chunk.last or len(lines) == max_rows or chunk.stop >= chunk.start + piece_bytes


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".ndjson.zst"])
def test_compressions(tmp_path: Path, shard_of: Callable[[Path], Shard], suffix: str) -> None:
    parts = [b"".join(b'{"n": %d}\n' % i for i in range(k, k + 1000)) for k in (0, 1000)]
    compress = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".ndjson.zst": zstandard.compress}[suffix]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join(map(compress, parts)))  # members and frames one after another
    (span,) = cut_spans(shard_of(path), 2**20)
    assert (span.stop, span.weight) == ((len(b"".join(parts)),) * 2 if suffix == ".jsonl" else (None, 4 * path.stat().st_size))
    lines = found(list(read_lines(span, MAX_LINE, {})))
    assert [text for _, text in lines] == [b'{"n": %d}' % i for i in range(2000)]


@pytest.mark.parametrize(("suffix", "compress"), [(".jsonl.gz", gzip.compress), (".jsonl.zst", zstandard.compress)])
@pytest.mark.parametrize("damage", ["cut", "flip", "junk"])
def test_a_torn_stream_keeps_the_pieces_before(
    tmp_path: Path, shard_of: Callable[[Path], Shard], suffix: str, compress: Callable[[bytes], bytes], damage: str
) -> None:
    parts = [b"".join(b'{"n": %d}\n' % (7919 * i % 100_003) for i in range(k, k + 3000)) for k in (0, 3000)]
    whole = [bytearray(compress(part)) for part in parts]
    if damage == "cut":
        del whole[1][-10:]
    elif damage == "flip":
        whole[1][:10] = b"\x00\x01" * 5
    else:
        whole[1] = bytearray(b"no member or frame")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join(whole))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_BLOCK", 512)
        chunks = _chunks(path, shard_of, 4096)
    assert len(chunks) > 5
    assert all(c.torn is None and not c.last for c in chunks[:-1])
    torn = chunks[-1]
    assert torn.torn
    assert (torn.last, torn.lines, torn.start, torn.stop) == (True, (), chunks[-2].stop, chunks[-2].stop)
    good = [line for c in chunks[:-1] for line in found(c.lines)]
    assert good == expected(b"".join(parts))[: len(good)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_stream_gives_every_piece_that_can_be_decoded(
    tmp_path: Path, shard_of: Callable[[Path], Shard], suffix: str, kept: float
) -> None:
    content = b"".join(b'{"n": %d}\n' % (7919 * i % 100_003) for i in range(50_000))
    stored = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    stored = stored[: int(len(stored) * kept)]
    decoder = zlib.decompressobj(31) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    decoded = decoder.decompress(stored)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(stored)
    *whole, torn = _chunks(path, shard_of, 1000)
    assert torn.torn
    lines = expected(decoded[: decoded.rfind(b"\n") + 1])
    good = [line for c in whole for line in found(c.lines)]
    assert good == lines[: len(good)]
    assert all(row < torn.start + 1000 for row, _ in lines[len(good) :])
    assert decoded.rfind(b"\n") + 1 < torn.start + 1000
    assert torn.start == (good[-1][0] + len(good[-1][1]) + 1 if good else 0)


def test_a_fault_inside_a_gzip_block_costs_nothing_before_it(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    lines = b'{"n": 1}\n' * 100
    stored = bytearray(gzip.compress(lines * 2, 0))  # stored as it is, behind 10 + 5 bytes of headers
    stored[-8:] = b"checksum"
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(stored)
    blocks: list[Lines] = []
    with pytest.raises(Corrupt, match="incorrect data check"):
        blocks.extend(read_lines(Span(shard_of(path), 0, None, 100), MAX_LINE, {}))
    assert found(blocks) == expected(lines * 2)


@pytest.mark.parametrize("max_rows", [3, 1000])
def test_a_piece_that_is_full_when_the_stream_breaks_off_is_whole(
    tmp_path: Path, shard_of: Callable[[Path], Shard], monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    monkeypatch.setattr(jsonl, "MAX_ROWS", max_rows)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{1}\n" * 6 + b'{"torn')[:-8])
    chunks = _chunks(path, shard_of, 12)
    assert [(c.index, c.start, c.stop, c.last, len(found(c.lines)), bool(c.torn)) for c in chunks] == [
        (0, 0, 12, False, 3, False),
        (1, 12, 24, False, 3, False),
        (2, 24, 24, True, 0, True),
    ]


def test_zeros_may_stand_between_gzip_members_and_not_before_them(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{1}\n") + bytes(1000) + gzip.compress(b"{2}\n") + bytes(1000))
    (chunk,) = _chunks(path, shard_of, 100)
    assert [line for _, line in found(chunk.lines)] == [b"{1}", b"{2}"]
    path.write_bytes(bytes(1000))
    (chunk,) = _chunks(path, shard_of, 100)
    assert chunk.torn


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_decompresses_without_end_comes_in_bounded_memory(
    tmp_path: Path, shard_of: Callable[[Path], Shard], suffix: str
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    line = b" " * 2**28
    path.write_bytes(gzip.compress(line, 1) if suffix == ".gz" else zstandard.compress(line))
    del line
    tracemalloc.start()
    try:
        assert head(shard_of(path), 2**20, {}) == []
        assert first_lines(Span(shard_of(path), 0, None, 100), 1, 1000, {}) == (1, None)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_file_of_no_bytes_is_one_empty_piece(tmp_path: Path, shard_of: Callable[[Path], Shard], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    (chunk,) = _chunks(path, shard_of, 100)
    assert (chunk.start, chunk.stop, chunk.last, chunk.torn, found(chunk.lines)) == (0, 0, True, None, [])


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" + b"x" * 100_000_000 + b"\n{}\n"))
    (span,) = cut_spans(shard_of(path), 2**20)
    blocks = list(read_lines(span, 1000, {}))
    assert [(int(r), int(s)) for b in blocks for r, s in zip(b.rows, b.sizes, strict=True)] == [
        (0, 2),
        (3, 100_000_000),
        (100_000_004, 2),
    ]
    assert max(len(b.data) for b in blocks) <= 2 * jsonl._BLOCK


@many
@given(contents, st.integers(1, 8))
def test_first_lines(shard_of: Callable[[Path], Shard], new_path: Callable[[str], Path], content: bytes, n_lines: int) -> None:
    path = new_path(".jsonl.gz")
    path.write_bytes(gzip.compress(content, 1))
    span = Span(shard_of(path), 0, None, 100)
    lines = expected(content)
    seen, stop = first_lines(span, n_lines, MAX_LINE, {})
    assert seen == min(n_lines, len(lines))
    cut = Span(span.shard, 0, stop, 100)
    assert found(list(read_lines(cut, MAX_LINE, {}))) == lines[:n_lines]


def test_first_lines_of_a_torn_stream_count_its_end(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 10)[:-8])
    span = Span(shard_of(path), 0, None, 100)
    with pytest.raises(Corrupt):
        list(read_lines(span, MAX_LINE, {}))
    assert first_lines(span, 100, MAX_LINE, {}) == (11, None)
    assert first_lines(span, 4, MAX_LINE, {}) == (4, 12)
    assert len(found(list(read_lines(Span(span.shard, 0, 12, 100), MAX_LINE, {})))) == 4


def test_the_head_of_a_shard_holds_whole_lines_only(tmp_path: Path, shard_of: Callable[[Path], Shard]) -> None:
    content = b"\xef\xbb\xbf{1}\r\n\n {2} \n{3}"
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert head(shard_of(path), 100, {}) == [b"{1}", b"{2}", b"{3}"]
    assert head(shard_of(path), 16, {}) == [b"{1}", b"{2}"]
    assert head(shard_of(path), 17, {}) == [b"{1}", b"{2}"]
    (tmp_path / "b.jsonl").write_bytes(b"x" * 1000)
    assert head(shard_of(tmp_path / "b.jsonl"), 100, {}) == []
    torn = tmp_path / "c.jsonl.gz"
    torn.write_bytes(gzip.compress(b"{1}\n" * 20)[:-3])
    assert head(shard_of(torn), 32, {}) == [b"{1}"] * 8
    assert head(shard_of(torn), 1000, {}) == [b"{1}"] * 20
