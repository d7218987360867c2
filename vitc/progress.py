"""What a person sees while a run goes: a bar with rate and ETA, or plain lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vitc.wording import duration


class RunProgress:
    """Progress of one run on stderr. `quiet` says nothing at all."""

    PLAIN_EVERY_SECONDS = 10.0  # between plain progress lines

    def __init__(self, title: str, total_steps: int, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=quiet)
        self.total, self.first = total_steps, 0
        self.title = title
        self.started = self.last_plain = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(title, total=total_steps, rate="")

    def __enter__(self) -> RunProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start_at(self, step: int) -> None:
        """The run begins, or goes on, after `step` steps: rate and ETA count from here."""
        self.first, self.started = step, time.monotonic()
        if self.bar is not None:
            self.bar.reset(self.task, completed=step, total=self.total, rate="")

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False)

    def step(self, step: int, loss: float, images_per_second: float) -> None:
        """The run has taken `step` steps; called when metrics are read, not every step."""
        rate = f"{images_per_second:,.0f} img/s  loss {loss:.3f}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, rate=rate)
            return
        now = time.monotonic()
        if now - self.last_plain < self.PLAIN_EVERY_SECONDS or step <= self.first:
            return
        self.last_plain = now
        eta = (now - self.started) / (step - self.first) * (self.total - step)
        self.say(f"{self.title}  step {step}/{self.total}  {rate}  {duration(eta)} left")


LOADER_SHARE = 0.15  # of the time waited for images, above which more loader speed pays


def what_limits(wait: float, seconds: float, workers: int | None, cores: int, device: str) -> str:
    """One line: is it reading images or computing that bounds the rate, and what to change.

    `wait` of `seconds` were spent waiting for images; `workers` None: they are held on the device.
    """
    share = wait / max(seconds, 1e-9)
    said = f"{100 * share:.0f} % of the time goes into waiting for images"
    if workers is None:
        return f"computing limits the rate: the images are held on {device} ({said})"
    if share < LOADER_SHARE:
        faster = "a smaller --model or --model.img_size" if device == "cpu" else "--train.compile"
        return f"computing limits the rate, not the loader ({said}); faster: {faster}"
    ways = ["pack the images once, smaller: vitc data pack SRC OUT --short-side 256"]
    if workers < cores:
        ways.insert(0, f"--data.workers {cores} (now {workers}, for {cores} cores)")
    elif device == "cpu":
        ways.append(f"loader and training share {cores} cores here")
    return f"the loader limits the rate: {said}; to change it: {'; or '.join(ways)}"
