"""Progress with rate and ETA: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from vitc.streams import Stream
from vitc.wording import duration

PLAIN_SECONDS = 10.0  # between plain lines


class Progress:
    """Progress on stderr of something that is done in `total` parts. `quiet` writes nothing.

    `total` may come with the first update. `unit` is what is counted ("img", "step");
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
        file = cast(TextIO, self.stream)
        self.console = Console(file=file, highlight=False, soft_wrap=True, quiet=quiet)
        self.plain_seconds = plain_seconds
        self.done = 0
        self.start_at(0)
        self.bar: Bar | None = None
        if self.console.is_terminal and not quiet:
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
        """Print one line that stays."""
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
            note = f"{(done - self.first) / max(now - self.started, 1e-9):,.0f} {self.unit}/s"
        if self.bar is not None:
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
