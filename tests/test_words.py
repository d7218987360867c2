"""The words of docs/words.md: spellings that no room may use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Between non-letters, so that names such as `tell_once` and `_said` are found too.
BANNED = {
    "says, said, tells, told": r"says?|said|saying|tells?|told|telling",
    "go on": r"go(?:es)? on|went on|going on|gone on",
    "anew": r"anew|afresh",
    "by heart": r"by heart",
    "came of it": r"came of|(?:run|study|measure)s? c[ao]mes? to",
    "has it so": r"ha(?:s|ve) it so",
    "outside for custom": r"outsiders?|from outside|outside the package|another's",
    "lying": r"lying",
    "Mind:": r"Mind:",
    "whole number": r"whole numbers?",
    "a text": r"a text(?! file)",
    "of a kind that": r"of (?:a|no) kind",
    "how far it is": r"how far (?:it|a study|they)",
}
STORED = re.compile(r"\.tell\(\)|\"says\"")  # a file's method, and a key of results.json
# Files quoting the words, and rooms that are still to be reworded. The second list only shrinks.
QUOTING = {"docs/words.md", "tests/test_words.py"}
NOT_YET = {
    "docs/results",
}


def written_for_people() -> list[Path]:
    found = [ROOT / f for f in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")]
    for folder in ("vitc", "docs", "examples", "benchmarks", "scripts"):
        found += [f for f in (ROOT / folder).rglob("*") if f.suffix in (".py", ".md", ".sh", ".j2")]
    return sorted(f for f in found if f.exists())


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", written_for_people(), ids=relative)
def test_no_banned_word_is_used(file: Path) -> None:
    name = relative(file)
    if name in QUOTING or any(name == room or name.startswith(f"{room}/") for room in NOT_YET):
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    wrong = [
        f"{name}:{number} ({what}): {line.strip()}"
        for number, line in enumerate(lines, start=1)
        for what, pattern in BANNED.items()
        if re.search(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", STORED.sub("", line))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_banned_word_would_be_found() -> None:
    pattern = rf"(?<![A-Za-z])(?:{BANNED['says, said, tells, told']})(?![A-Za-z])"
    assert re.search(pattern, "def _tell_once(self)")
    assert not re.search(pattern, "essays")
