"""What does the name of a custom class mean, and which file is it in? Nothing is run here."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from vitc.errors import ConfigError, suggest
from vitc.wording import short

SOURCES = "sources"  # the folder in a run or study that holds copies of custom files
FORM = "Write path/to/file.py:Class or package.module:Class."
FILE_LIMIT = 1 << 20  # bytes
SETTINGS_LIMIT, NAME_LIMIT = 2000, 6000  # characters
_CLASS = re.compile(r"(.+?(?<!:)):([^\W\d]\w*)(\(.*\))?")


class Kind(NamedTuple):
    """A kind of custom class: what it is called with, and what it must be."""

    noun: str
    option: str
    """The command-line option that names one."""
    given: tuple[str, ...]
    """Arguments it is always called with, besides its settings."""
    contract: str
    offered: tuple[str, ...] = ()
    """Arguments it is called with if its signature has them."""


STEM = Kind(
    "stem",
    "--model.stem",
    ("in_chans", "embed_dim"),
    "A stem is a torch.nn.Module, called with in_chans and embed_dim, that maps (B, in_chans, H, W)"
    " to (B, embed_dim, H / reduction, W / reduction) and has an integer `reduction`.",
)
MODEL = Kind(
    "model",
    "--model",
    ("num_classes",),
    "A model is a torch.nn.Module, called with num_classes (and in_chans and img_size if it has "
    "these arguments), that maps (B, in_chans, H, W) to (B, num_classes).",
    ("in_chans", "img_size"),
)
OPTIMIZER = Kind(
    "optimizer",
    "--optim",
    ("params", "lr"),
    "An optimizer is a torch.optim.Optimizer, called with parameter groups and lr.",
    ("weight_decay",),
)
SCHEDULE = Kind(
    "schedule",
    "--optim.schedule",
    (),
    "A schedule has lr(step, total_steps), or is a function of these two: the share of the peak.",
)
SOURCE = Kind("source", "--data", (), "What a source has: docs/sources.md.")
EXPORTED = Kind("archive", "RUN", (), "An archive of vitc export.")
# The setting of a config that names a class -> its kind; a source is named by data.path.
NAMED_BY = {"stem": STEM, "model": MODEL, "optim": OPTIMIZER, "schedule": SCHEDULE}


class Custom(NamedTuple):
    """A custom class as a config names it; its file has not been looked at."""

    kind: Kind
    source: str
    """path/to/file.py:Class or package.module:Class, with settings if it has any."""
    sha256: str = ""
    """Hash of its file; empty in a config written by hand."""

    @property
    def what(self) -> str:
        """The class, with its settings if it has any."""
        parts = class_parts(self.source)
        return parts[1] + parts[2] if parts else repr(self.source[:200])

    @property
    def place(self) -> str:
        """The file or module."""
        parts = class_parts(self.source)
        return parts[0] if parts else repr(self.source[:200])

    def problems(self) -> list[str]:
        """What is wrong with the settings `source` and `sha256` of its component."""
        path = self.kind.option.removeprefix("--").removeprefix("model.")
        if not self.source:
            return [f"{path}.source is empty; name the class: {self.kind.option} FILE.py:Class."]
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            return [f"{path}.sha256 {self.sha256[:70]!r} is not 64 hexadecimal digits."]
        return []


def class_parts(source: str) -> tuple[str, str, str] | None:
    """(file or module, class, settings in brackets or ""); None: not the name of a class."""
    if len(source) > NAME_LIMIT or not source.isprintable():
        return None
    found = _CLASS.fullmatch(source)
    return None if found is None else (found[1], found[2], found[3] or "")


def is_path(where: str) -> bool:
    """Whether the first of `class_parts` is a path, not the dotted name of a module."""
    return where.endswith(".py") or "/" in where or os.sep in where


def parse(one: Custom) -> tuple[str, str, dict[str, Any]]:
    """(file or module, class, settings). Raises ConfigError: no class named, invalid settings."""
    parts = class_parts(one.source)
    if parts is not None:
        return parts[0], parts[1], _settings(one.kind, parts[2]) if parts[2] else {}
    known = ""
    with contextlib.suppress(ConfigError, OSError, ValueError):
        file = Path(one.source.rstrip(":")).expanduser()
        if file.suffix == ".py" and file.is_file():
            classes = sorted(names_in(file, read_source(one.kind, file))[0])
            known = f" Classes in it: {', '.join(classes) or 'none'}."
    raise ConfigError(f"{one.source[:200]!r} names no class of a {one.kind.noun}.{known}", FORM)


def _settings(kind: Kind, call: str) -> dict[str, Any]:
    """`(width=32, act="gelu")` as values; only literals are evaluated."""
    values: dict[str, Any] | None = None
    with contextlib.suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        node = ast.parse(f"f{call}" if len(call) <= SETTINGS_LIMIT else "", mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            values = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(values) < len(node.keywords):  # **settings, or a name twice
                values = None
    if values is None:
        raise ConfigError(
            f"The settings {short(call)} of the {kind.noun} are invalid: use NAME=VALUE, where "
            "VALUE is a number, a quoted string, True, False, None, or a list of those.",
            "For example, quoted for the shell: 'my.py:MyClass(width=32, act=\"gelu\")'",
        )
    for name in (*kind.given, *kind.offered):
        if name in values:
            raise ConfigError(
                f"The {kind.noun} cannot set {name} itself; vitc passes it.",
                f"Set --model.{name} instead." if kind in (STEM, MODEL) else None,
            )
    return values


# -- files -----------------------------------------------------------------------------------------


def find(one: Custom) -> Path:
    """The file of a class. Raises ConfigError: there is none."""
    where, cls, _ = parse(one)
    file = Path(os.path.abspath(os.path.expanduser(where)))
    if not is_path(where):
        spec = _module_spec(where)
        if spec is not None and str(spec.origin).endswith(".py"):
            return Path(os.path.abspath(spec.origin))
        if spec is not None:
            raise ConfigError(f"The module {where} has no Python source file.", FORM)
        if not file.is_file():
            meant = f" Did you mean '{where}.py'?" if Path(f"{where}.py").is_file() else ""
            raise ConfigError(
                f"There is no module {where!r} on Python's path.{meant}",
                f"{FORM} A module must be installed, or on PYTHONPATH.",
            )
    elif not file.exists():
        near = suggest(file.name, [p.name for p in file.parent.glob("*.py")])
        raise ConfigError(f"There is no file {where} for the {one.kind.noun} {cls}.{near}", FORM)
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"The {one.kind.noun}'s file {where} is not a Python file (.py).", FORM)
    return file


def _module_spec(where: str) -> Any:
    """The spec of a module, or None. Its parent packages are not imported, so nothing runs."""
    names = where.split(".")
    spec: Any = None
    path: Any = None
    for i in range(len(names) if all(name.isidentifier() for name in names) else 0):
        if i and path is None:  # the last was a module, not a package
            return None
        spec = None
        for finder in sys.meta_path:
            with contextlib.suppress(AttributeError, ImportError):
                spec = spec or finder.find_spec(".".join(names[: i + 1]), path, None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def read_source(kind: Kind, file: Path) -> bytes:
    """The bytes of a source file. Raises ConfigError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"The {kind.noun}'s file {file} cannot be read: {error.strerror}."
        ) from error
    if len(content) > FILE_LIMIT:
        raise ConfigError(f"The {kind.noun}'s file {file} is larger than {FILE_LIMIT >> 20} MiB.")
    return content


def names_in(file: Path, content: bytes) -> tuple[set[str], set[str]]:
    """(classes a file defines, other names it binds); "*" among them for a star import."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno}: invalid Python: {error.msg}.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{file}: invalid Python: {error}.") from None
    classes = {n.name for n in nodes if isinstance(n, ast.ClassDef)}
    others = {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}
    others |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    others |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    return classes, others


def locate(one: Custom, folder: Path | None = None) -> tuple[Path, bytes]:
    """The file with the content that a config means: in its place, or the copy in `folder`.

    Whether it is trusted is not checked. Raises ConfigError: that content is in neither.
    """
    parse(one)
    if not one.sha256:
        file = find(one)
        return file, read_source(one.kind, file)
    places = [find_if_there(one)]
    if folder is not None:
        folder = Path(os.path.abspath(folder))
        for near in (folder, folder.parent.parent):  # a trial's study is two above it
            places += copies_in(near, one.sha256)
    for place in places:
        with contextlib.suppress(ConfigError):
            if place is not None and place.is_file():
                content = read_source(one.kind, place)
                if sha(content) == one.sha256:
                    return place, content
    gone = "has changed since it was named" if places[0] else "does not exist"
    copy = f", and {folder} has no intact copy of it" if folder else ""
    raise ConfigError(
        f"{one.place}, which defines the {one.kind.noun} {one.what}, {gone} (expected SHA-256 "
        f"{one.sha256[:12]}...){copy}.",
        f"Restore it, or start a new run with the file as it is: {one.kind.option} '{one.source}'",
    )


def find_if_there(one: Custom) -> Path | None:
    """The file that a config names, if it exists."""
    with contextlib.suppress(ConfigError):
        return find(one)
    return None


def copies_in(folder: Path, digest: str) -> list[Path]:
    """Files that may be the copy, by name; the caller checks their content."""
    files = sorted((folder / SOURCES).glob("*.py"))
    return [file for file in files if file.name.startswith(f"{digest[:12]}_")]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
