"""How large and how tangled is the code? Measures of vitc/ and tests/, from their source alone.

    python scripts/house.py                  # the whole package
    python scripts/house.py vitc/data        # one room
    python scripts/house.py --list           # also every file, function and name over its limit

Lines are counted as they stand: run `ruff format` first, and compare versions by the same script
(`git worktree add /tmp/before COMMIT`, then run it there).
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES, ARGUMENTS = 500, 80, 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rooms", nargs="*", type=Path, default=[ROOT / "vitc"])
    parser.add_argument("--list", action="store_true", help="name what is over its limit")
    args = parser.parse_args()
    files = sorted({f.resolve() for room in args.rooms for f in python_files(room)})
    texts = {f: f.read_text(encoding="utf-8") for f in files}
    trees = {f: ast.parse(text) for f, text in texts.items()}
    source = sum(text.count("\n") for text in texts.values())
    tests = sum(f.read_text(encoding="utf-8").count("\n") for f in python_files(ROOT / "tests"))
    package = sum(f.read_text(encoding="utf-8").count("\n") for f in python_files(ROOT / "vitc"))
    single = {f"{relative(f)}:{node.lineno} {node.name}": length(node) for f, node in once(trees)}
    long_files = {
        str(relative(f)): n for f, t in texts.items() if (n := t.count("\n")) > FILE_LINES
    }
    functions = [(f, node) for f, tree in trees.items() for node in functions_in(tree)]
    long_functions = {
        f"{relative(f)}:{node.lineno} {node.name}": n
        for f, node in functions
        if (n := length(node)) > FUNCTION_LINES
    }
    wide = {
        f"{relative(f)}:{node.lineno} {node.name}": n
        for f, node in functions
        if (n := arguments(node)) > ARGUMENTS
    }
    skips = sum(text.count("# fmt: skip") + text.count("# fmt: off") for text in texts.values())
    print(f"files                              {len(files):7,}")
    print(f"lines                              {source:7,}")
    print(f"import lines                       {sum(map(import_lines, trees.values())):7,}")
    print(f"functions                          {len(functions):7,}")
    print(f"private functions used once        {len(single):7,}  ({sum(single.values()):,} lines)")
    print(f"files over {FILE_LINES} lines                {len(long_files):7,}")
    print(f"functions over {FUNCTION_LINES} lines             {len(long_functions):7,}")
    print(f"functions over {ARGUMENTS} arguments          {len(wide):7,}")
    print(f"fmt: skip or off                   {skips:7,}")
    print(f"isinstance                         {count(texts, r'isinstance('):7,}")
    print(f"lines of tests, share of vitc/     {tests:7,}  {tests / package:.2f}")
    if args.list:
        show("files", long_files)
        show("functions", long_functions)
        show("arguments", wide)
        show("private functions used once", single)


def python_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def relative(file: Path) -> Path:
    return file.relative_to(ROOT)


def functions_in(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(node: Function) -> int:
    """Lines of a function from its `def` on, without decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def arguments(node: Function) -> int:
    """Parameters apart from self and cls, *args and **kwargs."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([a for a in every if a.arg not in ("self", "cls")])


def import_lines(tree: ast.AST) -> int:
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return sum((n.end_lineno or n.lineno) - n.lineno + 1 for n in nodes)


def once(trees: dict[Path, ast.Module]) -> Iterator[tuple[Path, Function]]:
    """Private functions and methods that their own file names once apart from the definition."""
    for file, tree in trees.items():
        names = Counter(
            node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Name | ast.Attribute)
        )
        for node in functions_in(tree):
            private = node.name.startswith("_") and not node.name.endswith("__")
            if private and names[node.name] == 1:
                yield file, node


def count(texts: dict[Path, str], text: str) -> int:
    return sum(len(re.findall(re.escape(text), t)) for t in texts.values())


def show(title: str, found: dict[str, int]) -> None:
    print(f"\n{title}")
    for name, n in sorted(found.items(), key=lambda item: -item[1]):
        print(f"  {n:5}  {name}")


if __name__ == "__main__":
    main()
