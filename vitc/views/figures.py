"""Charts as figures, each small enough to be read on a phone and in print."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vitc.views.model import Chart, Line

# Okabe & Ito's palette (jfly.uni-koeln.de/color) and a grey: distinct with any colour vision;
# line style and marker repeat the distinction for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
MOST_TICKS = 6  # labels that fit on an axis
INK = "#1b1f24"  # text and axes; in HTML they take the page's own colour

STYLE: dict[Any, Any] = {
    "figure.figsize": (4.7, 3.5),
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a `$` in a model's name is a `$`
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
}


def draw(chart: Chart) -> Figure:
    """The chart without a window system and without pyplot's global state."""
    with mpl.rc_context(STYLE):
        figure = Figure(layout="constrained")
        _draw_on(figure.subplots(), chart)
        labels = sum(bool(line.label) for line in chart.lines)
        if labels:
            figure.legend(loc="outside lower center", ncols=2 if labels > 1 else 1, fontsize=8)
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        figure.set_layout_engine(None)  # the layout is computed once, for all files
    return figure


def save_row(charts: Sequence[Chart], file: Path) -> None:
    """Charts in a row in one file, under the title of the first."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5 * len(charts), 3.5), layout="constrained")
        row = figure.subplots(1, len(charts), squeeze=False)[0]
        for axes, chart in zip(row, charts, strict=True):
            _draw_on(axes, chart)
            if any(line.label for line in chart.lines):
                axes.legend()
        row[0].set_title(charts[0].title)
    figure.savefig(file, dpi=150)


def _draw_on(axes: Any, chart: Chart) -> None:
    faint: dict[int, list[Any]] = {}  # hundreds of curves: one artist a contender
    for line in chart.lines:
        if len(line.x) and line.strength == "faint":
            faint.setdefault(line.look, []).append(list(zip(line.x, line.y, strict=True)))
        elif len(line.x):
            _draw_points(axes, line) if line.form == "points" else _draw_line(axes, line)
    for look, curves in faint.items():
        colour, style = _colour_and_style(look)
        axes.add_collection(
            LineCollection(curves, colors=colour, linestyles=[style], alpha=0.18, linewidths=0.7)
        )
    axes.autoscale_view()
    if chart.log_x:
        _log_axis(axes)
        measured = sorted({x for line in chart.lines for x in line.x})
        if len(measured) <= MOST_TICKS and all(float(x).is_integer() for x in measured):
            axes.set_xticks(measured)  # lengths in epochs: those that were run
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), chart.ticks, rotation=25, ha="right", fontsize=8)
    axes.set_xlabel(chart.xlabel)
    axes.set_ylabel(chart.ylabel)
    axes.set_ylim(*chart.ylim)


def save(chart: Chart, folder: Path) -> tuple[Figure, str]:
    """The chart as SVG in `folder`, a main one (`brief`) also as PNG and PDF.

    Returns the figure, and the SVG for an HTML page.
    """
    figure = draw(chart)
    for suffix in ("png", "pdf") if chart.brief else ():
        figure.savefig(folder / f"{chart.name}.{suffix}", dpi=200)
    svg = _svg(figure, chart)
    (folder / f"{chart.name}.svg").write_text(svg, encoding="utf-8")
    return figure, _inline(svg, chart.title)


def inline(chart: Chart) -> str:
    """The chart as SVG for an HTML page, in no file of its own."""
    return _inline(_svg(draw(chart), chart), chart.title)


def _svg(figure: Figure, chart: Chart) -> str:
    buffer = io.StringIO()
    # Ids are hashed with the salt, so that several pictures in one page never share one.
    with mpl.rc_context({"svg.hashsalt": chart.name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: str, title: str) -> str:
    """An SVG file as an element of a page: in the page's ink and width."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _draw_points(axes: Any, line: Line) -> None:
    """Points with their intervals, joined; the line to a substituted point is dashed."""
    colour, own = _colour_and_style(line.look)
    style = "-" if line.substituted else own  # there dashed has a meaning
    marker = line.marker if line.marker != "o" else MARKERS[line.look % len(MARKERS)]
    substituted = line.substituted or [False] * len(line.x)
    for i in range(1, len(line.x)):
        axes.plot(
            line.x[i - 1 : i + 1],
            line.y[i - 1 : i + 1],
            color=colour,
            linewidth=1.3,
            linestyle="--" if substituted[i] else style,
        )
    for i, hollow in enumerate(substituted):
        axes.plot(
            line.x[i],
            line.y[i],
            marker=marker,
            color=colour,
            linestyle="none",
            markerfacecolor="none" if hollow else colour,
            markersize=6,
            label=line.label if i == 0 else None,
        )
    if len(line.low):
        axes.vlines(line.x, line.low, line.high, color=colour, alpha=0.4, linewidth=1.5)


def _draw_line(axes: Any, line: Line) -> None:
    colour, style = _colour_and_style(line.look)
    label = line.label or None
    if line.form in ("curve", "steps"):
        alpha, width = (0.95, 1.8) if line.strength == "strong" else (1.0, 1.5)
        look = {"color": colour, "linestyle": style, "alpha": alpha, "linewidth": width}
        where = {"drawstyle": "steps-post"} if line.form == "steps" else {}
        axes.plot(line.x, line.y, label=label, **look, **where)
    elif line.form in ("band", "step band"):
        step, alpha = ("post", 0.10) if line.form == "step band" else (None, 0.13)
        axes.fill_between(
            line.x, line.low, line.high, step=step, color=colour, alpha=alpha, linewidth=0
        )
    elif line.form == "range":
        low, middle, high = line.x
        height = 0.015 + 0.03 * line.look
        place = {"transform": axes.get_xaxis_transform(), "color": colour}
        axes.plot([low, high], [height] * 2, linewidth=2.5, alpha=0.6, **place)
        axes.plot([middle], [height], marker="|", markersize=8, **place)
    else:
        crossed = line.substituted or [False] * len(line.x)
        kept = [(x, y) for x, y, c in zip(line.x, line.y, crossed, strict=True) if not c]
        others = [(x, y) for x, y, c in zip(line.x, line.y, crossed, strict=True) if c]
        marker = MARKERS[line.look % len(MARKERS)]
        look = {"s": 16, "alpha": 0.75, "color": colour, "marker": marker, "linewidths": 0}
        axes.scatter([x for x, _ in kept], [y for _, y in kept], label=label, **look)
        axes.scatter([x for x, _ in others], [y for _, y in others], s=22, color=colour, marker="x")


def _colour_and_style(i: int) -> tuple[str, Any]:
    """Colour and line style of the i-th contender: no two pairs alike up to seven times six."""
    return COLOURS[i % len(COLOURS)], STYLES[(i + i // len(COLOURS)) % len(STYLES)]


def _log_axis(axes: Any) -> None:
    """A log axis whose labels are plain numbers: names may hold `$`, so nothing is mathtext."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.tick_params(axis="x", labelsize=7.5)
