"""A study as one Markdown page for a repository: its figures, trials and numbers in a folder beside
it, everything made from the trials alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from vitc.errors import ConfigError
from vitc.files import write_atomically
from vitc.study.figures import Picture
from vitc.study.paper.claims import claims
from vitc.study.results import Section, Table
from vitc.study.summary import (
    deviations,
    facts,
    ranges,
    troubles,
    unfinished_text,
)

DPI = 110  # beside each other on a page of a repository, a few tens of kilobytes each
SHOWN = ("tuning_", "edf_", "delta_")  # of the figures of a study of draws; the others are its own


def check_page(page: Path) -> None:
    """Raises ConfigError: no Markdown file, or its folder is another's."""
    if page.suffix != ".md":
        raise ConfigError(f"--page {page} is not a Markdown file.", "Name it FILE.md.")
    beside = page.with_suffix("")
    if beside.exists() and not (beside.is_dir() and (beside / "trials.csv").is_file()):
        raise ConfigError(
            f"{beside} exists and holds no trials.csv of an earlier page: its figures and "
            "numbers would go there.",
            "Give the page another name.",
        )


def write_page(
    page: Path,
    sections: Sequence[Section],
    drawn: Sequence[Sequence[Picture]],
    files: dict[str, str],
) -> None:
    """Write `page`, and beside it, in a folder of its name, PNG figures and `files` (name -> text).

    Raises ConfigError (see `check_page`).
    """
    check_page(page)
    beside = page.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    for picture in (p for ps in drawn for p in _shown(ps)):
        picture.figure.savefig(beside / f"{picture.name}.png", dpi=DPI)
    for name, text in files.items():
        write_atomically(beside / name, text)
    parts = [_told(s, _shown(ps), beside.name, page) for s, ps in zip(sections, drawn, strict=True)]
    links = ", ".join(f"[{name}]({quote(beside.name)}/{name})" for name in files)
    write_atomically(page, "\n\n".join([*parts, f"Every trial and number: {links}."]) + "\n")


def _shown(drawn: Sequence[Picture]) -> list[Picture]:
    return [p for p in drawn if p.part == "chart" or p.name.startswith(SHOWN)]


def _told(s: Section, drawn: Sequence[Picture], folder: str, page: Path) -> str:
    first, *rest = s.finding.sentences
    notes = [*s.plan.about, *s.finding.warnings]
    figures = "\n".join(f"![{_text(p.title)}]({quote(folder)}/{p.name}.png)" for p in drawn)
    return "\n\n".join(
        filter(
            None,
            [
                f"# {_text(_title(s))}",
                _text(unfinished_text(s)),
                f"**{_text(first)}**",
                _list(rest),
                _agreement(s),
                figures,
                *(_table(t) for t in s.finding.tables),
                _list(notes),
                _table(troubles(s)),
                _table(_conditions(s, page)),
                _table(ranges(s.plan)) if ranges(s.plan).rows else "",
                _table(deviations(s)),
            ],
        )
    )


def _title(s: Section) -> str:
    from vitc.study.paper.exhibits import EXHIBITS

    name, _, scale = s.plan.exhibit.partition(" ")
    if name in EXHIBITS:
        return f"{EXHIBITS[name].title}: {name}, {scale} scale"
    drawn = dict.fromkeys(n.removeprefix("optim.") for rs in s.plan.ranges.values() for n in rs)
    return f"{s.name}: random draws of {' and '.join(drawn)}" if drawn else s.name


def _agreement(s: Section) -> str:
    """Empty where the study bears on none of the paper's claims."""
    verdicts = [c.verdict for c in claims(s)]
    if not verdicts:
        return ""
    words = {
        "agrees": "with the sign that the paper claims",
        "disagrees": "with the opposite one",
        "open": "open (the interval holds zero)",
    }
    counts = ", ".join(f"{sum(x == v for x in verdicts)} {w}" for v, w in words.items())
    many = len(verdicts)
    return (
        f"On the paper's claims {many} difference{'s bear' if many > 1 else ' bears'}: {counts}; "
        "see the table."
    )


def _conditions(s: Section, page: Path) -> Table:
    told = facts(s)
    rows = [
        [a, f"{b} --page {shlex.quote(str(page))}" if a == "made again by" else b]
        for a, b in told.rows
    ]
    return Table(told.title, ["what", "value"], rows)


# -- markup ----------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """Plain text on one line: what a name holds is shown, and makes no markup."""
    return re.sub(r"([\\`*\[\]<>|~#&])", r"\\\1", " ".join(text.split()))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_text(x)}" for x in lines)


def _table(table: Table) -> str:
    title, note = f"## {_text(table.title)}", _text(table.note)
    if not table.rows:
        return f"{title}\n\n{note}"
    head, *rows = ([_text(c) for c in r] for r in [table.head, *table.rows])
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, [title, body, note]))
