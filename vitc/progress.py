"""Progress with rate and ETA: a bar on a terminal or in a notebook, else plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO, cast

from vitc.streams import Stream
from vitc.wording import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_SECONDS = 10.0  # between plain lines


class Progress:
    """Progress on stderr of something that is done in `total` parts. `quiet` writes nothing.

    `total` may come with the first update. `unit` is what is counted ("img", "steps");
    `plain_seconds` is the time between plain lines where stderr is no terminal. A stderr that is
    closed or full stops nothing; `lost` is the reason.
    """

    def __init__(
        self,
        title: str,
        total: int = 0,
        unit: str = "img",
        *,
        quiet: bool = False,
        plain_seconds: float = PLAIN_SECONDS,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.stream = sys.stderr if isinstance(sys.stderr, Stream) else Stream(sys.stderr)
        from rich.console import Console  # where it is broken, vitc doctor still starts

        file = cast(TextIO, self.stream)
        self.console = Console(file=file, highlight=False, soft_wrap=True, quiet=quiet)
        self.plain_seconds = plain_seconds
        self.done = 0
        self.start_at(0)
        self.bar: Bar | None = None
        self.cell = NotebookBar(title) if self.console.is_jupyter and not quiet else None
        if self.console.is_terminal and not quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(title, total=total, note="", left="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.cell is not None:
            self.cell.show(self.done, self.total, "")
        if self.bar is not None:
            self.bar.stop()

    @property
    def lost(self) -> str:
        """Why output does not arrive; empty: it does."""
        return self.stream.lost

    def start_at(self, done: int) -> None:
        """`done` parts were there before: rate and ETA count from here."""
        self.first = self.done = done
        self.started = self.last_plain = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line that stays; in a notebook until the next one, below the bar."""
        if self.cell is not None:
            self.cell.line = text
            self.cell.show(self.done, self.total, self.left())
            return
        self.console.print(text, markup=False)

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """`done` parts of `total` are finished; `note` replaces the rate."""
        if total is not None:
            if not self.total:  # the first update: what an earlier run had done is no speed
                self.start_at(done)
            self.total = total
        self.done = done
        now = time.monotonic()
        if note is None:
            rate = (done - self.first) / max(now - self.started, 1e-9)
            note = f"{rate:{',.0f' if rate >= 10 else '.2g'}} {self.unit}/s"
        if self.cell is not None:
            self.cell.show(done, self.total, f"{note}  {self.left()}")
        elif self.bar is not None:
            self.bar.update(
                self.task, completed=done, total=self.total, note=note, left=self.left()
            )
        elif now - self.last_plain >= self.plain_seconds and done > self.first:
            self.last_plain = now
            self.line(f"{self.title}  {done:,}/{self.total:,}  {note}  {self.left()}")

    def left(self) -> str:
        """`about 3 min 20 s left`; empty while nothing is known."""
        fresh = self.done - self.first
        if fresh < 1:
            return ""
        seconds = (time.monotonic() - self.started) / fresh * (self.total - self.done)
        return f"about {duration(seconds)} left"


def show_lines(title: str, lines: Sequence[str]) -> None:
    """Print lines on stderr; in a notebook as one block below `title`, which a click opens. Of
    several processes the first does."""
    if not lines or os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console

    stream = sys.stderr if isinstance(sys.stderr, Stream) else Stream(sys.stderr)
    console = Console(file=cast(TextIO, stream), highlight=False, soft_wrap=True)
    if not console.is_jupyter:
        for line in lines:
            console.print(line, markup=False)
        return
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    page = f"<details><summary>{escape(title)}</summary><ul>{items}</ul></details>"
    values = {"text/html": page, "text/plain": "\n".join(lines)}
    import_module("IPython.display").display(values, raw=True)


class NotebookBar:
    """A bar in the output of a notebook's cell, which changes in place; no widgets are needed."""

    def __init__(self, title: str) -> None:
        self.title, self.line = title, ""
        self.handle: Any = None
        self.shown = ""

    def show(self, done: int, total: int, note: str) -> None:
        """Replace what is shown by `done` of `total`, the note, and the last line below."""
        display = import_module("IPython.display")
        text = f"{self.title}  {done:,}/{total:,}  {note}"
        bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
        page = f"<div>{bar} {escape(text)}<br><small>{escape(self.line)}</small></div>"
        if page == self.shown:
            return
        self.shown = page
        values = {"text/html": page, "text/plain": f"{text}\n{self.line}"}
        if self.handle is None:
            self.handle = display.display(values, raw=True, display_id=True)
        else:
            self.handle.update(values, raw=True)
