"""Who may import whom, and when: read from the source, so that a shortcut cannot creep in."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitc"
SCRIPTS = [PACKAGE.parent / name for name in ("benchmarks", "scripts", "examples")]
MODULES = {
    ".".join(("vitc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

BASE = {"errors", "settings", "wording", "files", "machine", "streams", "progress"}
CONFIGS = {
    "models.config",
    "models.stem_config",
    "data.config",
    "data.litter",
    "data.split_words",
    "optim.config",
    "optim.optimizers",
    "optim.schedule",
    "training.config",
}
COMPONENTS = {"models", "data", "optim"}
BELOW_RUNS = BASE | {"stats", "plugins", "config", "recipes", "resolve"} | COMPONENTS | CONFIGS

# Which rooms (or modules) a room may import, from the bottom up. A room may import itself.
MAY: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "wording": {"errors"},
    "files": {"errors", "wording"},
    "machine": {"errors", "wording"},
    "streams": set(),
    "progress": {"errors", "wording", "machine", "streams"},
    "views": {"errors", "wording"},
    "stats": {"errors"},
    "plugins": BASE,
    "models": BASE | CONFIGS | {"plugins"},
    "data": BASE | CONFIGS | {"plugins", "views"},
    "optim": BASE | CONFIGS | {"plugins"},
    "config": BASE | CONFIGS | {"plugins", "data.sources", "data.sources.base"},
    "recipes": BASE | CONFIGS | {"config", "models.zoo"},
    "resolve": BASE | CONFIGS | {"plugins", "config", "recipes", "models.zoo", "data.sources"},
    "runs": BELOW_RUNS,
    "weights": BELOW_RUNS | {"runs"},
    "training": BELOW_RUNS | {"runs", "weights"},
    "study": BELOW_RUNS | {"runs", "weights", "training", "views"},
    "deploy": BELOW_RUNS | {"runs", "weights", "training", "views"},
    "cli": BELOW_RUNS | {"runs", "weights", "training", "views", "study", "deploy", ""},
    "__main__": {"cli"},
    "": {"errors", "config", "resolve", "models", "weights", "training", "study", "deploy"},
}
CONFIG_MAY = BASE | CONFIGS | {"plugins"}  # a component's config is free of torch and of its room

# Imports against that order that are still there. The list only shrinks.
EXCEPTIONS: set[tuple[str, str]] = set()
WITHOUT_TORCH = [
    *sorted(CONFIGS),
    "errors",
    "plugins",
    "plugins.load",
    "config",
    "cli.main",
    "recipes",
    "resolve",
    "models.zoo",
]


def imports(module: str, late: bool) -> set[str]:
    """What a module imports by name: while it is itself imported, or (late) in its functions."""
    found = set()
    for node, is_late in statements(module):
        if is_late != late:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {node.module}
    return found


@functools.cache
def statements(module: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    nodes = walk(ast.parse(MODULES[module].read_text()), False)
    return [(n, late) for n, late in nodes if isinstance(n, ast.Import | ast.ImportFrom)]


def walk(node: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes but those under `if TYPE_CHECKING`, and whether a function holds them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, inside)


def inner(name: str) -> str:
    """`vitc.training.loop` -> `train.loop`; the package itself is empty."""
    return name.partition(".")[2]


def allowed(module: str, other: str) -> bool:
    mine, theirs = inner(module), inner(other)
    if (mine, theirs) in EXCEPTIONS:
        return True
    room = mine.partition(".")[0]
    if mine in CONFIGS:
        return theirs in CONFIG_MAY or theirs.startswith("plugins.")
    return theirs.partition(".")[0] in {room, *MAY[room]} or theirs in MAY[room]


@pytest.mark.parametrize("module", MODULES)
def test_each_room_imports_only_the_rooms_below_it(module: str) -> None:
    wrong = {
        other
        for late in (False, True)
        for other in imports(module, late)
        if other.partition(".")[0] == "vitc" and not allowed(module, other)
    }
    assert not wrong


@pytest.mark.parametrize(
    "script", sorted(s for d in SCRIPTS for s in d.glob("*.py")), ids=lambda path: path.stem
)
def test_what_scripts_import_of_the_package_is_there(script: Path) -> None:
    """They are not run by tests: a name that moved would be missed only by the next who needs
    them."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vitc":
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                inside = f"{node.module}.{alias.name}" in MODULES
                assert inside or hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_no_exception_is_left_that_nothing_needs() -> None:
    used = {
        (inner(module), inner(other))
        for module in MODULES
        for late in (False, True)
        for other in imports(module, late)
    }
    assert not EXCEPTIONS - used


def test_no_two_modules_import_each_other_while_being_imported() -> None:
    graph = {m: imports(m, late=False) & MODULES.keys() for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph[module] - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_cycle_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, body in (("a", "from vitc.b import x"), ("b", "import vitc.a")):
        file = tmp_path / f"{name}.py"
        file.write_text(body)
        monkeypatch.setitem(MODULES, f"vitc.{name}", file)
    with pytest.raises(AssertionError, match=r"vitc\.[ab] -> vitc\.[ab] -> vitc\.[ab]"):
        test_no_two_modules_import_each_other_while_being_imported()


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_and_timm_are_never_imported(module: str) -> None:
    roots = {name.partition(".")[0] for late in (False, True) for name in imports(module, late)}
    assert not roots & {"torchvision", "timm"}


def test_settings_help_and_errors_come_without_torch() -> None:
    code = "import sys, importlib\n" + "".join(
        f"importlib.import_module('vitc.{name}'); assert 'torch' not in sys.modules, {name!r}\n"
        for name in WITHOUT_TORCH
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_reads_nothing_heavy_and_says_nothing() -> None:
    heavy = ("torch", "numpy", "scipy", "matplotlib", "PIL", "rich")
    code = f"import vitc, sys; assert not [m for m in {heavy} if m in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
