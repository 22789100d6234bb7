"""`tidemill eval`: a task's column of a committed table scored against gold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.console import Json, OutputPath, StorageOption, Version, clean, out, parse_options, print_json
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation

_MOST_CONFUSED = 10


def command(
    output: OutputPath,
    task: Annotated[str, typer.Option(help="The column to score: the name of a task.", metavar="NAME")],
    gold: Annotated[str, typer.Option(help="A kept column, or FILE.parquet or FILE.jsonl with :COLUMN.", metavar="WHERE")],
    on: Annotated[str, typer.Option(help="The column by which a file of gold is joined.", metavar="COLUMN")] = "id",
    k: Annotated[str, typer.Option(help="The k of recall@k, for embeddings.", metavar="K,K,...")] = "1,5,10",
    picture: Annotated[Path | None, typer.Option(help="Draw the figures to FILE.svg or FILE.png.", metavar="FILE")] = None,
    version: Version = None,
    storage_option: StorageOption = None,
    json: Json = False,
) -> None:
    """Score a task's column of a committed table against gold; the types of both choose the metric."""
    from pipeline.evaluation import Question, evaluate_output

    question = Question(task, gold, on, _ks(k))
    if picture is not None:
        from jobs import chart

        chart.check(picture)
    found = evaluate_output(output, question, version=version, storage_options=parse_options(storage_option))
    if not json:
        _print(found)
    if picture is not None:
        chart.draw(found, picture)
    if json:
        print_json(found.as_dict())


def _ks(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{text!r} is no list of numbers above 0, such as 1,5,10", field="--k")
    return tuple(sorted({int(part) for part in parts}))


def _print(found: Evaluation) -> None:
    head = {"rows": found.rows, "without gold": found.without_gold, "without prediction": found.without_prediction}
    _table(f"{found.task}: {found.metric}", ["", ""], [[name, _text(v)] for name, v in {**head, **found.scores.overall}.items()])
    per_label = found.scores.per_label
    if per_label:
        names = list(next(iter(per_label.values())))
        _table("", ["label", *names], [[label, *(_text(f[name]) for name in names)] for label, f in per_label.items()])
    wrong = [
        (count, gold, label)
        for gold, row in (found.scores.confusion or {}).items()
        for label, count in row.items()
        if gold != label
    ]
    if wrong:
        most = sorted(wrong, key=lambda cell: -cell[0])[:_MOST_CONFUSED]
        _table("", ["gold", "predicted instead", "rows"], [[gold, label, str(count)] for count, gold, label in most])


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=Text(title), title_justify="left", show_header=any(columns), box=None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(Text(clean(value)) for value in row))  # as they are: a label may look like markup
    out.print(table)
    out.print()


def _text(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
