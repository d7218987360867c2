"""docs/architecture.md describes the tree as it is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREE = re.search(r"```\nvitc/\n(.*?)```", PAGE, flags=re.S)


def described() -> set[str]:
    """Rooms and top-level modules of the page's tree, as paths below vitc/."""
    assert TREE is not None
    found, room = set(), ""
    for line in TREE[1].splitlines():
        name = line.split()[0]
        inside = line.startswith("    ")
        found.add(f"{room}{name}" if inside else name)
        room = room if inside else name
    return found


def test_every_room_and_top_level_module_has_its_line() -> None:
    package = ROOT / "vitc"
    folders = {p.parent for p in package.rglob("*.py")} - {package}
    modules = {p.stem for p in package.glob("*.py") if not p.stem.startswith("__")}
    assert described() == modules | {f"{f.relative_to(package).as_posix()}/" for f in folders}


def test_every_file_it_names_exists() -> None:
    named = re.findall(
        r"`((?:cli|data|models|optim|recipes|runs|study|training)/[a-z_/]*)(?:\.py)?`", PAGE
    )
    assert named
    for name in named:
        path = ROOT / "vitc" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_it_stays_short() -> None:
    assert PAGE.count("\n") <= 150
