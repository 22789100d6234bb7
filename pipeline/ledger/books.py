"""The books: does every piece of the input have exactly one record, and does every row come out somewhere?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import Incomplete
from pipeline.ledger.pieces import Span
from pipeline.ledger.records import Record, span_identity

_SHOWN = 10


@dataclass(frozen=True)
class Totals:
    """Sums over records."""

    pieces: int
    rows_in: int
    rows_out: int
    quarantined: dict[str, int]
    """Reason -> rows."""
    filtered: int
    bytes: int
    """Of data files."""
    statistics: dict[str, float]


def totals(records: Iterable[Record]) -> Totals:
    """Sums over `records`."""
    records = list(records)
    quarantined: Counter[str] = Counter()
    statistics: dict[str, float] = {}
    for record in records:
        quarantined.update(record.quarantined)
        for name, value in record.statistics.items():
            statistics[name] = statistics.get(name, 0) + value
    return Totals(
        pieces=len(records),
        rows_in=sum(r.rows_in for r in records),
        rows_out=sum(r.rows_out for r in records),
        quarantined=dict(sorted(quarantined.items())),
        filtered=sum(r.filtered for r in records),
        bytes=sum(r.bytes for r in records),
        statistics=dict(sorted(statistics.items())),
    )


def close(spans: Sequence[Span], records: Iterable[Record]) -> list[Record]:
    """The records of all pieces of `spans`, in their order; records of other spans are left out.

    Raises Incomplete, which says what is wrong and where, unless every span is a whole chain of pieces, the rows of every
    piece are accounted for, Parquet pieces have the rows that the footer promised, and all have one schema.
    """
    chains: dict[tuple[str, str, int, int | None, int], list[Record]] = {}
    for record in records:
        chains.setdefault(record.span, []).append(record)
    closed: list[Record] = []
    problems: list[str] = []
    for span in spans:
        chain = sorted(chains.get(span_identity(span), []), key=lambda r: r.index)
        problems += [f"{_where(span)}: {problem}" for problem in check_chain(span, chain)]
        problems += [f"{_where(span)}, piece {r.index}: {problem}" for r in chain for problem in check_rows(r)]
        closed += chain
    problems += check_schemas(closed)
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise Incomplete(f"nothing is published, the books do not close; run the same command again to go on{shown}{more}")
    return closed


def check_chain(span: Span, chain: Sequence[Record]) -> Iterator[str]:
    """What is wrong with the pieces of one span, sorted by index: none, twice, gaps, no end, other rows than promised."""
    indexes = [r.index for r in chain]
    if len(set(indexes)) < len(indexes):
        yield "two records for one piece"
        return
    if indexes != list(range(len(chain))):
        yield f"missing pieces {sorted(set(range(max(indexes))) - set(indexes))[:_SHOWN]}"
        return
    if not chain:
        yield "no record"
        return
    if not chain[-1].last or any(r.last for r in chain[:-1]):
        yield f"the pieces 0..{indexes[-1]} do not end with the span's last one"
    stops = [span.start, *(r.stop for r in chain)]
    if any(r.start != stop for r, stop in zip(chain, stops, strict=False)):
        yield "the pieces' ranges do not join"
    if span.rows is not None and len(chain) != 1:
        yield f"{len(chain)} pieces for one range of rows"
    elif span.rows is not None and not _unreadable(chain[0]) and chain[0].rows_in != span.rows:
        yield f"{chain[0].rows_in} rows were read, the footer promises {span.rows}"


def check_rows(record: Record) -> Iterator[str]:
    """What is wrong with one record's own numbers."""
    quarantined = sum(record.quarantined.values())
    if record.rows_in != record.rows_out + quarantined + record.filtered:
        yield f"{record.rows_in} rows in, but {record.rows_out} out + {quarantined} quarantined + {record.filtered} filtered"
    if (record.file is None) != (record.rows_out == 0) or (record.quarantine_file is None) != (quarantined == 0):
        yield "rows without a file, or a file without rows"


def check_schemas(records: Iterable[Record]) -> Iterator[str]:
    """More than one schema among the pieces of one table."""
    first: dict[str, str] = {}
    for record in records:
        first.setdefault(record.schema, record.shard)
    if len(first) > 1:
        yield f"{len(first)} output schemas, for example in {' and '.join(list(first.values())[:2])}"


def _unreadable(record: Record) -> bool:
    """One quarantine entry stands for the whole piece, and counts as one row in."""
    return record.rows_in == 1 and record.quarantined == {"unreadable": 1}


def _where(span: Span) -> str:
    return f"{span.shard.label} [{span.start}, {'end' if span.stop is None else span.stop})"
