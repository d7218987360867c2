"""What is shown to people, as plain data: text, tables, charts, and a page of them.

`text`, `html`, `markdown`, `latex` and `figures` render these records. Every string is plain text:
a renderer escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

Tone = Literal[
    "", "verdict", "verdict warn", "verdict stop", "warning", "stop", "warn", "good", "note"
]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """The title of what follows. `label`: a word before it, in the colour of `tone`."""

    kind: ClassVar = "heading"
    text: str
    level: int = 2
    label: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Bullets:
    kind: ClassVar = "bullets"
    items: Sequence[str]
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; without rows only its title and note are shown.

    `brief`: also shown where there is room for the most important tables only. `tight`: only cells
    of the first column may be broken into lines.
    """

    kind: ClassVar = "table"
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    brief: bool = False
    level: int = 2
    tight: bool = False

    @classmethod
    def of(
        cls, title: str, rows: Sequence[Mapping[str, str]], note: str = "", **more: Any
    ) -> Table:
        """A table of rows by the names of its columns, the same in every row."""
        return cls(
            title, list(rows[0]) if rows else [], [[*r.values()] for r in rows], note, **more
        )

    def transposed(self) -> Table:
        """Rows and columns exchanged: the first column becomes the head."""
        head, *rows = zip(self.head, *self.rows, strict=True)
        return replace(self, head=list(head), rows=[list(row) for row in rows])


@dataclass(frozen=True)
class Cards:
    """What is to be read first: statements beside each other."""

    kind: ClassVar = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Card:
    """`label`: what it is about; `headline`: the claim in a few words, coloured by `tone`."""

    text: str
    label: str = ""
    headline: str = ""
    tone: Tone = ""


GREY = -1  # a look: what is compared with, behind


@dataclass(frozen=True)
class Line:
    """One set of numbers in a chart, in the colour and style of the `look`-th contender.

    points: markers joined by lines, with the intervals `low` to `high` (nan: unbounded);
    curve, steps: a line; scatter: markers alone; band, step band: the area from `low` to `high`;
    range: a bar from x[0] to x[2] with a tick at x[1]; rug: crosses; in both y is a share of the
    axis; level: the height y[0] with the band from low[0] to high[0], over the whole width.
    `substituted` marks points of diverged runs: hollow, with a dashed line to them; in a scatter
    a cross. Without a label a line is not in the legend.

    A page shows `titles` over the points of a scatter or rug, or over a whole curve (one title).
    `names`: a point leads to the curve of that name.
    """

    label: str
    look: int
    x: Sequence[float]
    y: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marker: str = "o"
    substituted: Sequence[bool] = ()
    form: Literal[
        "points", "curve", "steps", "scatter", "band", "step band", "range", "rug", "level"
    ] = "points"
    strength: Literal["normal", "faint", "strong"] = "normal"
    titles: Sequence[str] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """One figure of lines. With `ticks`, x are their places and the axis is not numeric.

    `name`: of its files. `brief`: also on a page that shows the main figures only.
    """

    name: str
    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    log_x: bool = False
    ticks: Sequence[str] = ()
    ylim: tuple[float | None, float | None] = (None, None)
    brief: bool = True


@dataclass(frozen=True)
class ForestRow:
    """One comparison: its interval over a dot for each pair, and who failed how often."""

    label: str
    verdict: str
    look: int
    estimate: float
    low: float
    high: float
    dots: Sequence[float]
    failed: Sequence[tuple[int, int]]
    """Failures and runs, of the contender and of the reference."""
    titles: Sequence[str] = ()
    """What a page shows over the dots."""


@dataclass(frozen=True)
class Forest:
    """One figure of comparisons, a row each. `failures`: what is counted at the right."""

    name: str
    title: str
    xlabel: str
    failures: str
    rows: Sequence[ForestRow]
    brief: bool = True


@dataclass(frozen=True)
class Figures:
    """Charts in a row, below a title and a note if they have one."""

    kind: ClassVar = "figures"
    charts: Sequence[Chart | Forest]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture; None: there is none to show."""

    caption: Sequence[str]
    jpeg: bytes | None


@dataclass(frozen=True)
class Thumbnails:
    kind: ClassVar = "thumbnails"
    pictures: Sequence[Thumbnail]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars one below the other, each with its name and count."""

    kind: ClassVar = "bars"
    rows: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Matrix:
    """Counts of every pair of names, rows by columns, darker where a count's share of its row is
    larger. `corner`: what rows and columns are."""

    kind: ClassVar = "matrix"
    corner: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Details:
    """Text of many lines that a reader opens on demand; pages of one glance leave it out."""

    kind: ClassVar = "details"
    title: str
    text: str


Part = Text | Heading | Bullets | Cards | Table | Figures | Thumbnails | Bars | Matrix | Details


@dataclass(frozen=True)
class Page:
    """What is shown: `parts` to people, `values` to machines.

    `reload_seconds`: a browser loads the page again after so long; 0: never.
    """

    title: str
    parts: Sequence[Part]
    values: dict[str, Any] = field(default_factory=dict)
    reload_seconds: int = 0
