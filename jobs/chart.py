"""The picture of an evaluation: bars for each label, the confusion matrix, or recall over k. Needs matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
_MOST_BARS = 40
_MOST_CELLS = 25
_MOST_NUMBERS = 12
"""Labels up to which the cells of a confusion matrix carry their counts."""
_LONGEST = 24
_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC")
"""Asked for characters that matplotlib's own font lacks."""
_SETTINGS: dict[str, Any] = {
    "text.parse_math": False,  # a label may hold dollars
    "svg.fonttype": "none",  # text stays text: the reader's fonts may have what this machine's lack
    "svg.hashsalt": "tidemill",  # the same figures give the same file
}

_Shown = Callable[[str], str]


def check(file: Path) -> None:
    """ConfigError where no picture can be written to `file`."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"{file.name!r} ends in neither {' nor '.join(FORMATS)}", field="--picture")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {str(file.parent)!r}", field="--picture")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("pictures need matplotlib; pip install 'tidemill[eval]'", field="--picture") from error


def draw(found: Evaluation, file: Path) -> None:
    """Write the picture of `found`. ConfigError for a metric that has neither labels nor a k."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curve = found.metric.startswith("retrieval")
    if not found.scores.per_label and not curve:
        raise ConfigError(f"there is no picture for {found.metric}: it has no labels", field="--picture")
    panels = [_curve] if curve else [_bars, *([_matrix] if found.scores.confusion else [])]
    rows = 8 if curve else min(len(found.scores.per_label), _MOST_BARS)
    fonts = _installed()
    svg = file.suffix == ".svg"
    shown = _plain if svg else _escaped(fonts)
    settings: Any = {**_SETTINGS, "font.family": fonts}
    with mpl.rc_context(settings), warnings.catch_warnings():
        if svg:  # what this machine cannot draw, the reader's may
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(6.5 * len(panels), max(4.5, 1.5 + 0.28 * rows)), layout="constrained")
        figure.suptitle(f"{shown(found.task)}: {found.metric}, {found.rows} rows")
        for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
            panel(axes, found, shown)
        figure.savefig(file, dpi=150, metadata={"Date": None} if svg else None)


def _bars(axes: Axes, found: Evaluation, shown: _Shown) -> None:
    """F1 of each label, its support beside its name."""
    labels = _most_frequent(found, _MOST_BARS)
    figures = [found.scores.per_label[label] for label in labels]
    bars = axes.barh(range(len(labels)), [f["f1"] for f in figures])
    axes.bar_label(bars, fmt="%.3f", padding=3)
    names = [f"{shown(label)} ({f['support']})" for label, f in zip(labels, figures, strict=True)]
    axes.set_yticks(range(len(labels)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("F1")
    axes.set_title(_title("labels (support)", len(labels), found))


def _matrix(axes: Axes, found: Evaluation, shown: _Shown) -> None:
    """Counts of gold against predicted labels, shaded by their share of the gold label's rows."""
    labels = _most_frequent(found, _MOST_CELLS)
    confusion = found.scores.confusion or {}
    counts = np.array([[confusion.get(gold, {}).get(label, 0) for label in labels] for gold in labels])
    support = np.array([max(found.scores.per_label[label]["support"], 1) for label in labels])
    shares = counts / support[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [shown(label) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90)
    axes.set_yticks(range(len(labels)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.set_title(_title("confusion", len(labels), found))
    if len(labels) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color)


def _curve(axes: Axes, found: Evaluation, _: _Shown) -> None:
    """Recall over k, the other figures in the title."""
    overall = found.scores.overall
    ks = sorted(int(name.removeprefix("recall@")) for name in overall if name.startswith("recall@"))
    recalls = [overall[f"recall@{k}"] for k in ks]
    axes.plot(ks, recalls, marker="o")
    for k, recall in zip(ks, recalls, strict=True):
        axes.annotate(f"{recall:.3f}", (k, recall), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set_xticks(ks)
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("k")
    axes.set_ylabel("recall@k")
    axes.set_title(f"MRR {overall['mrr']:.3f}, nDCG@10 {overall['ndcg@10']:.3f}")


def _most_frequent(found: Evaluation, most: int) -> list[str]:
    """The labels with the largest support, in the order of the report."""
    figures = found.scores.per_label
    chosen = set(sorted(figures, key=lambda label: -figures[label]["support"])[:most])
    return [label for label in figures if label in chosen]


def _title(what: str, n: int, found: Evaluation) -> str:
    every = len(found.scores.per_label)
    return what if n == every else f"{what}, the {n} most frequent of {every}"


def _installed() -> list[str]:
    from matplotlib import font_manager

    names = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FONTS if name in names)]


def _plain(text: str) -> str:
    """`text` in one line and not too long."""
    text = "".join(c if c.isprintable() else _code(c) for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _escaped(fonts: list[str]) -> _Shown:
    """As `_plain`, what no font can draw as its code."""
    from matplotlib import font_manager

    known = set().union(*(font_manager.get_font(font_manager.findfont(font)).get_charmap() for font in fonts))
    return lambda text: "".join(c if ord(c) in known else _code(c) for c in _plain(text))


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
