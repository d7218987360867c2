"""Does every command of README and docs exist, with the options that it is shown with?"""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from vitc.cli.main import ALIASES, GROUPS, VERBS
from vitc.cli.parser import take_settings
from vitc.config import all_leaf_types

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that call vitc, and its indented ones; continued lines
    are joined, lines with an ellipsis left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(
        r"^ *(?:\$ )?(?:torchrun .* -m )?(vitc [a-z][^\n`|<>\[]*)$", text, re.MULTILINE
    )
    blocks = "\n".join(re.findall(r"```(?:sh|console)?\n(.*?)```", text, re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4,}\S.*$", text, re.MULTILINE))
    return [c for c in found if (c in blocks or c in indented) and "..." not in c and "…" not in c]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_of_the_docs_are_read(page: Path) -> None:
    for command in commands(page):
        _, name, *rest = shlex.split(command, comments=True)
        name = ALIASES.get(name, name)
        if name in GROUPS:
            verb = GROUPS[name]()[rest[0]]
            name, rest = f"{name} {rest[0]}", rest[1:]
        else:
            verb = VERBS[name]
        if {"--help", "--help-all"} & {*rest}:
            continue
        settings, own = take_settings(rest) if verb.takes_settings else ({}, rest)
        known = all_leaf_types()  # optim.schedule names a kind, whose settings are leaves
        unknown = [k for k in settings if not any(f"{leaf}.".startswith(f"{k}.") for leaf in known)]
        assert not unknown, command
        verb.parser(name).read(own, all_leaf_types() if verb.takes_settings else {}, Namespace())


def test_there_are_many() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 60
