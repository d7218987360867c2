"""How is a class or function of a running program named, so that other processes can import it?

One of an importable file is named by that file. One that was defined in a notebook or a script is
written to a file of its own, with the imports, constants and definitions that it uses: importing
the script again would run all of it.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from vitc.errors import ConfigError
from vitc.plugins.names import SOURCES, sha

INTO_A_FILE = "Move it to a file and name it there: 'my_model.py:{}'."


def named(thing: Any, folder: Path) -> str:
    """FILE.py:NAME(setting=value) of a class, function, or `functools.partial` of one.

    What has no importable file is written into the sources of `folder`, a study's. Raises
    ConfigError: its source is nowhere, or it uses what cannot be written down.
    """
    settings = ""
    if isinstance(thing, functools.partial):
        if thing.args:
            raise ConfigError(f"{thing} has positional arguments; settings need their names.")
        settings = f"({', '.join(f'{k}={_literal(k, v)}' for k, v in thing.keywords.items())})"
        thing = thing.func
    name = getattr(thing, "__name__", "")
    if not (isinstance(thing, type) or inspect.isfunction(thing)) or not name.isidentifier():
        raise ConfigError(
            f"{thing!r} is neither a class nor a named function.",
            "Give a class, or a function made with def that returns what is to be trained.",
        )
    if "<locals>" in thing.__qualname__:
        raise ConfigError(
            f"{name} was defined inside a function, where no other process can import it.",
            f"Define it at the top level. {INTO_A_FILE.format(name)}",
        )
    where = _importable(thing)
    return f"{where or _write(thing, folder)}:{name}{settings}"


def _importable(thing: Any) -> str:
    """The file or dotted module that a top-level name can be imported from; empty: there is none.

    A module of a package is named as such: its relative imports need the package.
    """
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    if thing.__module__ == "__main__" or file is None or not file.endswith(".py"):
        return ""
    if getattr(module, thing.__name__, None) is not thing:
        return ""
    return thing.__module__ if "." in thing.__module__ else str(Path(file).absolute())


def _write(thing: Any, folder: Path) -> Path:
    """The file of a definition and all that it uses, in the sources of `folder`."""
    imports: dict[str, str] = {}
    bodies: dict[str, str] = {}
    _collect(thing, imports, bodies, set())
    text = '"""Written by vitc from a notebook or script."""\n\n'
    text += "".join(f"{line}\n" for line in dict.fromkeys(sorted(imports.values())))
    text += "".join(f"\n\n{body}\n" for body in bodies.values())
    content = text.encode()
    path = folder / SOURCES / f"{sha(content)[:12]}_{thing.__name__}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.absolute()


def _collect(thing: Any, imports: dict[str, str], bodies: dict[str, str], begun: set[str]) -> None:
    """Add a definition after everything that it uses."""
    name = thing.__name__
    begun.add(name)
    source = _source(thing)
    around = thing.__globals__ if inspect.isfunction(thing) else vars(sys.modules[thing.__module__])
    for used in _free_names(source):
        if used not in around:
            if not hasattr(builtins, used):
                raise ConfigError(f"{name} uses {used}, which is not defined.")
            continue
        value: Any = around[used]
        home, label = getattr(value, "__module__", None), getattr(value, "__name__", "")
        if isinstance(value, ModuleType):
            imports[used] = f"import {label}" + ("" if label == used else f" as {used}")
        elif home == thing.__module__ and (inspect.isclass(value) or inspect.isfunction(value)):
            if label not in begun:
                _collect(value, imports, bodies, begun)
        elif getattr(sys.modules.get(str(home)), label or "-", None) is value:
            imports[used] = f"from {home} import {label} as {used}"
        elif used not in bodies:
            bodies[used] = f"{used} = {_literal(used, value)}"
    bodies[name] = source


def _literal(name: str, value: Any) -> str:
    """A constant as Python text. Raises ConfigError: it is none."""
    text = repr(value)
    try:
        same = ast.literal_eval(text) == value
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise ConfigError(
            f"{name}, a {type(value).__name__}, cannot be written to a file: only numbers, texts, "
            "and lists or tables of them can.",
            "Make it inside the class or function, or move all of it to a file: my_model.py:Net.",
        )
    return text


def _source(thing: Any) -> str:
    """The text of a definition, from the cell or file that it was run from."""
    for code in _codes(thing):
        lines = linecache.getlines(code.co_filename)
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:  # as with commands of the notebook's own in the cell
            continue
        for node in ast.walk(tree):
            kinds = (ast.ClassDef, ast.FunctionDef)
            if isinstance(node, kinds) and node.name == thing.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                assert node.end_lineno is not None
                if first <= code.co_firstlineno <= node.end_lineno:
                    return textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).rstrip()
    raise ConfigError(
        f"The source of {thing.__name__} is not known.", INTO_A_FILE.format(thing.__name__)
    )


def _codes(thing: Any) -> Iterator[CodeType]:
    """The code of a function, or of the methods that a class defines itself."""
    members: list[Any] = [thing] if inspect.isfunction(thing) else list(vars(thing).values())
    for member in members:
        function: Callable[..., Any] | None = getattr(member, "__func__", member)
        code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _free_names(source: str) -> list[str]:
    """The names that a definition takes from around it, builtins included."""
    found: dict[str, None] = {}

    def visit(table: symtable.SymbolTable, top: bool) -> None:
        for symbol in table.get_symbols():
            outside = symbol.is_global() or (top and not symbol.is_assigned())
            if outside and symbol.is_referenced() and not symbol.get_name().startswith("."):
                found[symbol.get_name()] = None
        for child in table.get_children():
            visit(child, False)

    table = symtable.symtable(source, "<definition>", "exec")
    visit(table, True)
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}
    names = [name for name in found if name not in own and not name.startswith("__")]
    return [*names]
