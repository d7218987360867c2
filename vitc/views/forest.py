"""A forest plot: every comparison's interval, with the failures to learn beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitc.views.figure_style import (
    CHARACTER,
    EDGE,
    INK,
    MUTED,
    SMALL,
    Place,
    address,
    colour,
    fitting,
)
from vitc.views.model import Forest, ForestRow

ROW, HEAD, FOOT = 38, 20, 36  # pixels
RIGHT, LEFT, INTERVALS, BARS = 8, 14, 212, 46
MIDDLE = (5, 95)  # percent of the dots that are sure to be shown


def height(forest: Forest) -> int:
    return HEAD + ROW * len(forest.rows) + FOOT


def draw(forest: Forest, place: Place) -> None:
    rows = forest.rows
    axes = place.axes(LEFT, HEAD, INTERVALS, ROW * len(rows))
    axes.set(xlim=_limits(forest), ylim=(ROW * len(rows), 0), yticks=[])
    axes.spines["left"].set_visible(False)
    lanes = [(ROW * i + 17, ROW * (i + 1)) for i in range(len(rows))]  # below the names
    axes.vlines([0] * len(lanes), *zip(*lanes, strict=True), color=INK, linewidth=0.9)
    axes.set_xlabel(forest.xlabel)
    bars_left = place.width - RIGHT - BARS - 46
    failures = place.axes(bars_left, HEAD, BARS, ROW * len(rows))
    failures.axis("off")
    failures.set(xlim=(0, 1), ylim=(ROW * len(rows), 0))
    right = place.width - RIGHT
    place.text(right, HEAD / 2, forest.failures, ha="right", fontsize=SMALL)
    for i, row in enumerate(rows):
        top = ROW * i
        room = right - CHARACTER * 1.2 * len(row.verdict) - 8
        place.text(EDGE, HEAD + top + 9, fitting(row.label, room))
        place.text(right, HEAD + top + 9, row.verdict, ha="right", weight="bold")
        _draw_interval(axes, row, top + 25)
        _draw_failures(failures, row, top + 20)
        counts = " : ".join(f"{n}" for n, _ in row.failed)
        place.text(right, HEAD + top + 25, counts, ha="right", fontsize=SMALL)


def _limits(forest: Forest) -> tuple[float, float]:
    ends = [0.0]
    for r in forest.rows:
        ends += [r.low, r.estimate, r.high]
        ends += list(np.percentile(r.dots, MIDDLE)) if len(r.dots) else []
    ends = [x for x in ends if math.isfinite(x)]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _draw_interval(axes: Any, row: ForestRow, y: float) -> None:
    """The dots behind, the interval as a bar; an arrow where it has no bound."""
    ink = colour(row.look)
    n = len(row.dots)
    spread = [y + 9 * ((0.618 * i) % 1 - 0.5) for i in range(n)]
    alpha = 0.45 if n <= 32 else 0.25
    drawn = axes.scatter(row.dots, spread, s=7, color=ink, alpha=alpha, linewidths=0)
    if row.titles:
        drawn.set_urls([address("", title) for title in row.titles])
    if not math.isfinite(row.estimate):
        return
    bounds, edges = (row.low, row.high), axes.get_xlim()
    ends = [b if math.isfinite(b) else e for b, e in zip(bounds, edges, strict=True)]
    axes.plot(ends, [y, y], color=ink, linewidth=3.2, solid_capstyle="butt")
    for end, real, marker in zip(ends, bounds, "<>", strict=True):
        if not math.isfinite(real):
            axes.plot([end], [y], marker=marker, color=ink, markersize=5, clip_on=False)
    axes.plot([row.estimate], [y], marker="o", color=ink, markersize=5.5, markeredgecolor="white")


def _draw_failures(axes: Any, row: ForestRow, y: float) -> None:
    for i, (n, of) in enumerate(row.failed):
        axes.barh(y + 6 * i, 1, height=5, color=MUTED, alpha=0.18)
        axes.barh(y + 6 * i, n / max(of, 1), height=5, color=MUTED if i else colour(row.look))
