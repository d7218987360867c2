"""How is a run going right now? In a terminal until it ends, or as a page that reloads itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from vitc.deploy.show_run import curves, run_page
from vitc.files import write_atomically
from vitc.runs.folder import EVENTS, METRICS, Run
from vitc.views.model import Bullets, Figures, Page, Part, Text
from vitc.wording import printable

SECONDS = 2.0  # between two looks
RELOAD = 10  # seconds between two versions of the page
PAGE = "live.html"
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
LATEST_EVENTS = 8
CLEAR = "\x1b[H\x1b[J"


def follow(path: Path, stream: TextIO, page: bool = False) -> None:
    """Show the run in `path` until it ends or Ctrl-C: on a terminal in place, else a line a change.

    `page`: keep RUN/live.html up to date too. Raises what reading a run raises.
    """
    from vitc.views import text

    written, last = 0.0, ""
    while True:
        shown = live_page(path)
        going = str(shown.values["status"]).startswith(("running", "unfinished"))
        if stream.isatty():
            stream.write(CLEAR)
            text.write(shown.parts, stream)
        elif (line := one_line(path, shown)) != last:
            stream.write(f"{line}\n")
            last = line
        stream.flush()
        if page and (not going or time.monotonic() - written >= RELOAD):
            write_live(path, shown, going)
            written = time.monotonic()
        if not going:
            return
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            return


def live_page(path: Path) -> Page:
    """What `vitc show RUN` shows, the course of the loss, and the latest events."""
    shown = run_page(path)
    losses = [m["loss"] for m in Run(path).metrics("train") if m.get("loss") is not None]
    parts: list[Part] = [*shown.parts]
    if losses:
        parts.insert(1, Text(f"loss {losses[0]:.3g} {bars(losses)} {losses[-1]:.3g}"))
    file = path / EVENTS
    if file.is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [printable(line.partition("  ")[2]) for line in lines]
        warnings = [line for line in found if line.startswith("Warning: ")]
        if warnings:
            parts.insert(1, Bullets(warnings[-LATEST_EVENTS:], "warning"))
        parts.append(Text("Latest events:"))
        parts.append(Bullets(found[-LATEST_EVENTS:]))
    return replace(shown, parts=parts)


def bars(values: Sequence[float], width: int = WIDTH) -> str:
    """A line of bars: means of equal parts of the values, from the smallest to the largest."""
    parts = [
        values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)
    ]
    means = [sum(part) / len(part) for part in parts if part]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def one_line(path: Path, shown: Page) -> str:
    """The state in one line, for a pipe or a file."""
    values: dict[str, Any] = shown.values
    run = Run(path)
    top1 = [run.top1] if run.status == "done" else [e.get("top1") for e in values["evals"][-1:]]
    loss = [m["loss"] for m in run.metrics("train")][-1:]
    return "  ".join(
        [
            f"step {values['step']:,}",
            str(values["status"]),
            *(f"loss {v:.3f}" for v in loss if v is not None),
            *(f"top1 {v:.2f} %" for v in top1 if v is not None),
        ]
    )


def write_live(path: Path, shown: Page, going: bool) -> Path:
    """Write RUN/live.html: with curves; while the run is going the browser loads it again."""
    from vitc.views import figures, html

    charts = curves(path.name, Run(path).metrics()) if (path / METRICS).is_file() else []
    charts = [c for c in charts if any(line.x for line in c.lines)]
    parts: list[Part] = [*shown.parts, *([Figures(charts, "Curves")] if charts else [])]
    page = replace(shown, parts=parts, reload_seconds=RELOAD if going else 0)
    svgs = {chart.name: figures.inline(chart) for chart in charts}
    write_atomically(path / PAGE, html.render(page, svgs))
    return path / PAGE
