"""What is built from a custom class? Its file is imported here, once it is known to be trusted.

A trusted file can import its neighbours, as a script can, where it was named. Its copy in a run
folder, or the same bytes in any other place, is imported without them: they were never trusted.
Compiled files (__pycache__) are not read.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from vitc.errors import ConfigError, VitcError, suggest
from vitc.plugins.consent import require_trust, trusted
from vitc.plugins.names import Custom, Kind, is_path, locate, parse, sha
from vitc.wording import short


def load(one: Custom) -> tuple[Any, dict[str, Any], str]:
    """(what the name stands for, its settings, class and file for messages), file imported.

    Raises ConfigError: the file is not trusted, does not have the hash of the config, or raises.
    """
    if one.sha256:  # before anything is looked for
        require_trust(one, one.sha256)
    _, name, settings = parse(one)
    file, content = locate(one)
    module = _import(one, file, content)
    return getattr(module, name, None), settings, f"{name} of {file}"


def build(
    kind: Kind, cls: Any, given: Mapping[str, Any], settings: Mapping[str, Any], label: str = ""
) -> Any:
    """`cls(**given, **settings)`, without what is only `offered` and not in its signature.

    `cls` may be a function that returns what the class would make. Raises ConfigError: neither, a
    setting that it does not have or that is missing, or it raises.
    """
    label = label or getattr(cls, "__qualname__", repr(cls))
    the = f"The {kind.noun} {label}"
    if not isinstance(cls, type) and not inspect.isfunction(cls):
        raise ConfigError(f"{the} is neither a class nor a function.", kind.contract)
    try:
        known = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a class without a signature
        known = {}  # type: ignore[assignment]
    any_name = not known or any(p.kind is p.VAR_KEYWORD for p in known.values())
    names = [n for n, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [n for n in names if n not in (*kind.given, *kind.offered)]
    if not any_name:
        for name in kind.given:
            if name not in names:
                takes = ", ".join(names) or "no arguments"
                raise ConfigError(f"{the} does not take {name}; it takes {takes}.", kind.contract)
        for name in settings:
            if name not in names:
                raise ConfigError(
                    f"{the} has no setting {name!r}.{suggest(name, own)}",
                    f"Its settings: {', '.join(own) or 'none'}.",
                )
        given = {n: v for n, v in given.items() if n in names}
    missing = [n for n in own if known[n].default is inspect.Parameter.empty and n not in settings]
    if missing:
        raise ConfigError(
            f"{the} needs {', '.join(missing)}, which has no default.",
            f"Give it in brackets: '...:{cls.__name__}({missing[0]}=...)'",
        )
    try:
        return cls(**given, **settings)
    except VitcError:
        raise
    except Exception as error:
        raise ConfigError(f"{the} cannot be built: {why(error, cls)}") from error


def why(error: BaseException, cls: Any, file: str = "") -> str:
    """`line 3: ValueError: ...`: what went wrong, and where in `file` or the file of a class."""
    if cls is not None:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = short(error.msg if isinstance(error, SyntaxError) else str(error))
    where = "" if line is None else f"line {line}: "
    return f"{where}{type(error).__name__}{': ' if text else ''}{text}."


_MODULES: dict[str, str] = {}  # module -> SHA-256 of its file when this process imported it


def _import(one: Custom, file: Path, content: bytes) -> ModuleType:
    """Run trusted bytes as a module, once a process. Raises ConfigError: they raise."""
    digest = sha(content)
    require_trust(one, digest)
    at_home = (digest, str(file)) in trusted()
    as_module = at_home and not is_path(one.place)
    name = one.place if as_module else f"vitc_custom_{digest}"
    if as_module and _MODULES.setdefault(name, digest) != digest:
        raise ConfigError(
            f"{file} has changed since this process imported {name}.", "Start a new process."
        )
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _torch_untouched():
            if as_module:
                return importlib.import_module(name)
            return _run(name, file, content, file.parent if at_home else None)
    except (Exception, SystemExit) as error:
        _MODULES.pop(name, None)
        alone = not at_home and isinstance(error, ImportError)
        raise ConfigError(
            f"The {one.kind.noun}'s file {file} fails when it is imported: "
            f"{why(error, None, str(file))}",
            "It was imported without the files beside it, which are not trusted. Name the class "
            "in its original place, or keep it in one file."
            if alone
            else None,
        ) from error


@contextlib.contextmanager
def _torch_untouched() -> Iterator[None]:
    """What a file draws or makes at import changes neither the weights of the model (its generator
    is restored) nor the device of tensors at module level (which may be built under `meta`)."""
    if "torch" not in sys.modules:
        yield
        return
    from torch import device
    from torch.random import fork_rng

    with fork_rng(devices=[]), device("cpu"):
        yield


def _run(name: str, file: Path, content: bytes, folder: Path | None) -> ModuleType:
    """A module made from these very bytes: no compiled file, no second read."""
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses, pickle and torch.compile look a class up there
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        exec(compile(content, str(file), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        if folder is not None:
            with contextlib.suppress(ValueError):  # the file may have changed the path itself
                sys.path.remove(str(folder))
    return module
