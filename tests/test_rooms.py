"""Who may import whom, and when: read from the source, so that a shortcut cannot creep in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitc"
MODULES = {
    ".".join(("vitc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A room may import these rooms; late: only inside functions, so that nothing is read for nothing.
BOTTOM = {"errors", "outside"}
COMPONENTS = {"models", "data", "optim"}
MAY = {
    "errors": set(),
    "outside": {"errors"},
    "models": BOTTOM,
    "data": BOTTOM,
    "optim": BOTTOM,
    "config": BOTTOM | {"models.config", "data.config", "optim.config", "train.config"},
    "recipes": BOTTOM
    | {"config", "models.config", "models.zoo", "data.config", "optim.config", "train.config"},
    "train": BOTTOM | COMPONENTS | {"config", "recipes"},
    "study": BOTTOM | COMPONENTS | {"config", "recipes", "train"},
    "deploy": BOTTOM | COMPONENTS | {"config", "recipes", "train"},
    "words": BOTTOM | {"config", "train.runlog"},
    "cli_engines": BOTTOM | {"words", "study"},
    "cli_study": BOTTOM | {"words", "config", "study", "cli_engines"},
    "cli_measures": BOTTOM | {"words", "cli_study", "cli_engines", "study", "train.runlog"},
    "cli_data": BOTTOM | {"words", "config", "data", "cli_check"},
    "cli_check": BOTTOM | {"words", "config", "data"},
    "cli_push": BOTTOM | {"words", "deploy"},
    "cli_convert": BOTTOM | {"words", "config", "models", "train"},
    "cli": BOTTOM
    | COMPONENTS
    | {
        "words",
        "cli_study",
        "cli_measures",
        "cli_data",
        "cli_convert",
        "cli_push",
        "config",
        "recipes",
        "train",
        "study",
        "deploy",
        "",
    },
    "__main__": {"cli"},
    "": BOTTOM | COMPONENTS | {"config", "recipes", "train", "study", "deploy"},
}
MAY_LATE = {
    "config": {"recipes", "models.zoo", "models.outside", "data.outside"},
    "deploy": {""},  # for the version
}
WITHOUT_TORCH = [name for name in MODULES if name.endswith(".config")] + [
    "vitc", "vitc.errors", "vitc.outside", "vitc.config", "vitc.cli", "vitc.recipes",
    "vitc.models", "vitc.data", "vitc.optim", "vitc.train", "vitc.deploy", "vitc.study",
    "vitc.models.zoo", "vitc.models.outside",
]  # fmt: skip


def imports(module: str, late: bool) -> set[str]:
    """What a module imports by name: while it is itself imported, or (late) in its functions."""
    found = set()
    for node, is_late in walk(ast.parse(MODULES[module].read_text()), False):
        if is_late != late:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {node.module}
    return found


def walk(node: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes but those under `if TYPE_CHECKING`, and whether a function holds them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, inside)


def inner(name: str) -> str:
    """`vitc.train.loop` -> `train.loop`; the package itself is empty."""
    return name.partition(".")[2]


def allowed(module: str, other: str, late: bool) -> bool:
    room, theirs = inner(module).partition(".")[0], inner(other)
    rules = MAY[room] | (MAY_LATE.get(room, set()) if late else set())
    return theirs.partition(".")[0] in {room, *rules} or theirs in rules


@pytest.mark.parametrize("module", MODULES)
def test_each_room_imports_only_the_rooms_below_it(module: str) -> None:
    wrong = {
        other
        for late in (False, True)
        for other in imports(module, late)
        if other.partition(".")[0] == "vitc" and not allowed(module, other, late)
    }
    assert not wrong


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
        f"importlib.import_module({name!r}); assert 'torch' not in sys.modules, {name!r}\n"
        for name in WITHOUT_TORCH
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_reads_nothing_heavy_and_says_nothing() -> None:
    heavy = ("torch", "numpy", "scipy", "matplotlib", "PIL", "rich", "tyro")
    code = f"import vitc, sys; assert not [m for m in {heavy} if m in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
