"""The books close exactly when every row of every span is accounted for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import Incomplete
from pipeline.ledger.books import close, totals
from pipeline.ledger.pieces import Span
from pipeline.ledger.records import Record

MakeSpan = Callable[..., Span]
MakeRecord = Callable[..., Record]
Chain = Callable[..., list[Record]]


@pytest.fixture
def gz(make_span: MakeSpan) -> Span:
    return make_span("b.jsonl.gz", stop=None, rows=None)


@pytest.fixture
def chain(make_record: MakeRecord) -> Chain:
    """Sound records of the first n pieces of a span, the last of them `last`."""
    return lambda span, n: [make_record(span, i, last=i == n - 1) for i in range(n)]


def test_closed_records_stand_in_span_order(make_span: MakeSpan, gz: Span, chain: Chain) -> None:
    parquet, other = make_span(), make_span("not-mine.parquet")
    records = [*reversed(chain(gz, 3)), *chain(other, 1), *chain(parquet, 1)]
    assert close([gz, parquet], records) == [*chain(gz, 3), *chain(parquet, 1)]


def test_a_span_without_record(make_span: MakeSpan) -> None:
    with pytest.raises(Incomplete, match=r"nothing is published.*\n  a\.parquet \[0, 10\): no record$"):
        close([make_span()], [])


@pytest.mark.parametrize(
    ("keep", "problem"),
    [([0, 1], "do not end with the span's last one"), ([0, 2], r"missing pieces \[1\]"), ([1, 2], r"missing pieces \[0\]")],
)
def test_a_chain_with_a_hole(gz: Span, chain: Chain, keep: list[int], problem: str) -> None:
    records = chain(gz, 3)
    with pytest.raises(Incomplete, match=rf"b\.jsonl\.gz \[0, end\): .*{problem}"):
        close([gz], [records[i] for i in keep])


def test_a_chain_that_goes_on_after_its_last(gz: Span, make_record: MakeRecord) -> None:
    with pytest.raises(Incomplete, match="do not end with"):
        close([gz], [make_record(gz, 0, last=True), make_record(gz, 1, last=True)])


@pytest.mark.parametrize("shift", [{"start": 11}, {"stop": 21}])
def test_ranges_that_do_not_join(gz: Span, make_record: MakeRecord, shift: dict[str, int]) -> None:
    records = [make_record(gz, 0, last=False), make_record(gz, 1, **{"last": False, **shift}), make_record(gz, 2)]
    with pytest.raises(Incomplete, match="do not join"):
        close([gz], records)


def test_two_records_for_one_piece(gz: Span, make_record: MakeRecord) -> None:
    with pytest.raises(Incomplete, match="two records for one piece"):
        close([gz], [make_record(gz), make_record(gz, file="data/g1/other.parquet")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows_out": 7},
        {"rows_in": 11},
        {"filtered": 1},
        {"quarantined": {"bad_json": 1}},
        {"file": None},
        {"quarantine_file": None},
    ],
)
def test_rows_that_do_not_add_up(gz: Span, make_record: MakeRecord, wrong: dict[str, object]) -> None:
    with pytest.raises(Incomplete, match="piece 0: "):
        close([gz], [make_record(gz, **wrong)])


def test_filtered_rows_are_accounted_for(gz: Span, make_record: MakeRecord) -> None:
    record = make_record(gz, rows_out=5, filtered=3)
    assert close([gz], [record]) == [record]


def test_fewer_rows_than_the_footer_promised(make_span: MakeSpan, make_record: MakeRecord) -> None:
    with pytest.raises(Incomplete, match="9 rows were read, the footer promises 10"):
        close([make_span()], [make_record(make_span(), rows_in=9, rows_out=7)])


def test_an_unreadable_piece_stands_for_its_rows(make_span: MakeSpan, make_record: MakeRecord) -> None:
    torn = make_record(make_span(), rows_in=1, rows_out=0, file=None, quarantined={"unreadable": 1})
    assert close([make_span()], [torn]) == [torn]


def test_one_range_of_rows_is_one_piece(make_span: MakeSpan, chain: Chain) -> None:
    with pytest.raises(Incomplete, match="2 pieces for one range of rows"):
        close([make_span()], chain(make_span(), 2))


def test_two_schemas(make_span: MakeSpan, make_record: MakeRecord) -> None:
    spans = [make_span("a.parquet"), make_span("b.parquet")]
    with pytest.raises(Incomplete, match=r"2 output schemas, for example in a\.parquet and b\.parquet"):
        close(spans, [make_record(spans[0], schema="s1"), make_record(spans[1], schema="s2")])


def test_a_long_list_is_cut(make_span: MakeSpan) -> None:
    with pytest.raises(Incomplete) as caught:
        close([make_span(f"{n}.parquet") for n in range(25)], [])
    assert str(caught.value).count("no record") == 10
    assert str(caught.value).endswith("... and 15 more")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_without_any_one_record_the_books_stay_open(
    make_span: MakeSpan, chain: Chain, lengths: list[int], data: st.DataObject
) -> None:
    spans = [make_span(f"{n}.gz", stop=None, rows=None) for n in range(len(lengths))]
    records = [r for span, n in zip(spans, lengths, strict=True) for r in chain(span, n)]
    assert close(spans, data.draw(st.permutations(records))) == records
    lost = data.draw(st.sampled_from(records))
    with pytest.raises(Incomplete):
        close(spans, [r for r in records if r is not lost])


def test_totals(make_span: MakeSpan, make_record: MakeRecord) -> None:
    records = [
        make_record(make_span("a")),
        make_record(make_span("b"), quarantined={"bad_json": 2}, statistics={"tokens": 2, "segments": 1}),
    ]
    sums = totals(records)
    assert (sums.pieces, sums.rows_in, sums.rows_out, sums.filtered, sums.bytes) == (2, 20, 16, 0, 246)
    assert sums.quarantined == {"bad_json": 3, "null_text": 1}
    assert sums.statistics == {"tokens": 42, "segments": 1}
