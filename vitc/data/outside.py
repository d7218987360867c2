"""A source of images from outside the package: a class in a file or module (docs/sources.md).

Importing a file runs it. So its SHA-256 must have been admitted: the user named it, on a command
line or in Python, on this machine. A config that somebody wrote down admits nothing. What was
admitted stands in `$XDG_STATE_HOME/vitc/trusted_sources` (by default under ~/.local/state), one
hash a line; and, for the processes that this one starts, in VITC_TRUSTED_SOURCES.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitc.data.config import OUTSIDE_CLASS, DataConfig
from vitc.data.folders import SPLIT_WORDS, some
from vitc.data.store import Ints, Names, Stored
from vitc.errors import BrokenFileError, ConfigError, DataError, VitcError, suggest

FILE_LIMIT = 1 << 20  # bytes
TRUSTED_ENV = "VITC_TRUSTED_SOURCES"
FORM = "Write path/to/file.py:Class or package.module:Class; the class: docs/sources.md."


@dataclass(eq=False)
class Outside:
    """A source from outside, checked, as a `Store`: splits one after another.

    labels: int64 (n,) of each split; content: bytes that tell its images from others'.
    """

    config: DataConfig
    classes: tuple[str, ...]
    labels: dict[str, Ints]
    names: Names
    content: bytes
    _made: Any = field(default=None, repr=False)
    _process: int = field(default_factory=os.getpid, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": None}

    def read(self, place: int) -> Stored:
        """Raises BrokenFileError: the source raises, or gives no image."""
        name = self.name(place)
        split, index = "", place
        for split, labels in self.labels.items():  # noqa: B007
            if index < len(labels):
                break
            index -= len(labels)
        try:
            if self._made is None or self._process != os.getpid():
                # Its own in every process: files opened before a fork would share one position.
                self._made, self._process = _made(self.config), os.getpid()
            stored = self._made.read(split, index)
        except VitcError:
            raise
        except Exception as e:
            raise BrokenFileError(f"{name!r} cannot be read: {type(e).__name__}: {e}.",
                                  f"It comes from {self.config.path}.") from e  # fmt: skip
        if isinstance(stored, bytes):
            return stored
        if isinstance(stored, memoryview | bytearray):
            return bytes(stored)
        if (
            isinstance(stored, np.ndarray)
            and stored.dtype == np.uint8
            and stored.ndim == 3
            and stored.shape[2] in (1, 3, 4)
            and stored.size
        ):
            return stored
        shape = f" {stored.dtype} {stored.shape}" if isinstance(stored, np.ndarray) else ""
        raise BrokenFileError(
            f"{name!r} is a {type(stored).__name__}{shape}, not an image.",
            "read() gives the bytes of an image file, or a numpy array uint8 (H, W, 1 | 3 | 4).",
        )

    def name(self, place: int) -> str:
        return self.names[place]


def load_outside(config: DataConfig) -> Outside:
    """The source that `config.path` names, made and asked what it has.

    Raises ConfigError: not admitted, changed, or no such class; DataError: what it has cannot be.
    """
    made = _made(config)
    where = str(config.path)
    classes = tuple(_attribute(made, "classes", where))
    if not all(isinstance(c, str) for c in classes) or len(set(classes)) < max(2, len(classes)):
        raise DataError(f"{where} has the classes {some(map(str, classes), 5)}; they must be two "
                        "or more different texts.")  # fmt: skip
    given = dict(_attribute(made, "labels", where))
    unknown_splits = [name for name in given if name not in SPLIT_WORDS]
    if "train" not in given or unknown_splits:
        raise DataError(f"{where} has labels of the splits {some(map(str, given))}; 'train' is "
                        "needed, and 'val' and 'test' are known.")  # fmt: skip
    labels = {name: _labels(given[name], name, len(classes), where) for name in SPLIT_WORDS
              if name in given}  # fmt: skip
    absent = np.setdiff1d(np.arange(len(classes)), labels["train"])
    if len(absent):
        raise DataError(f"{where} has no training image of {some(classes[i] for i in absent)}.")
    named = dict(getattr(made, "names", {}))
    names: list[str] = []
    for split, of_split in labels.items():
        mine = [str(n) for n in named[split]] if split in named else [
            f"{split}/{i}" for i in range(len(of_split))
        ]  # fmt: skip
        if len(mine) != len(of_split):
            raise DataError(
                f"{where} has {len(of_split):,} {split} labels and {len(mine):,} names."
            )
        names += mine
    told = str(getattr(made, "fingerprint", "")) or f"{Path(where).name} {config.path_sha256}"
    return Outside(config, classes, labels, Names.of(names), told.encode(), made)


def _attribute(made: Any, name: str, where: str) -> Any:
    value = getattr(made, name, None)
    if value is None or not callable(getattr(made, "read", None)):
        raise ConfigError(f"{where} has no {name if value is None else 'read(split, index)'}.",
                          "What a source has: docs/sources.md.")  # fmt: skip
    return value


def _labels(values: Any, split: str, classes: int, where: str) -> Ints:
    labels = np.asarray(values)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise DataError(f"{where} has {split} labels that are no list of whole numbers (one label "
                        "an image).")  # fmt: skip
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{where} has {split} labels outside 0 ... {classes - 1}.")
    return labels.astype(np.int64)


# -- named and trusted -----------------------------------------------------------------------------


def name_source(config: DataConfig) -> DataConfig:
    """The config of a source that the user names just now, its file's hash filled in; admitted.

    The file is read, not run. Raises ConfigError: no such file or class.
    """
    spec = _spec(str(config.path))
    file = _file(spec)
    content = _content(file)
    _check_class(spec, file, content)
    sha256 = hashlib.sha256(content).hexdigest()
    _admit(sha256)
    return replace(config, path_sha256=sha256)


@dataclass(frozen=True)
class _Spec:
    where: str
    name: str
    settings: dict[str, Any]


def _spec(path: str) -> _Spec:
    found = OUTSIDE_CLASS.fullmatch(path)
    if found is None:
        raise ConfigError(f"data.path {path!r} names no class.", FORM)
    settings: dict[str, Any] = {}
    if found["call"]:
        wrong = ConfigError(
            f"The settings {found['call'][:200]} cannot be read.",
            "Give them as NAME=VALUE, each value a literal: 'my.py:Images(root=\"~/scans\")'",
        )
        try:
            call = ast.parse(f"f{found['call']}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args or len(found["call"]) > 2000:
                raise wrong
            settings = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise wrong from None
    return _Spec(found["where"], found["name"], settings)


def _file(spec: _Spec) -> Path:
    """The source file; no package is imported for it but those above a module."""
    if spec.where.endswith(".py") or "/" in spec.where:
        file = Path(os.path.abspath(os.path.expanduser(spec.where)))
        if not file.is_file():
            near = ""
            if file.parent.is_dir():
                near = suggest(file.name, [p.name for p in file.parent.glob("*.py")])
            raise ConfigError(f"There is no file {spec.where}.{near}", FORM)
        return file
    found: Any = None
    path: Any = None
    for i in range(len(parts := spec.where.split("."))):  # parents are found, not imported
        for finder in sys.meta_path:
            with contextlib.suppress(AttributeError, ImportError, ValueError):
                found = finder.find_spec(".".join(parts[: i + 1]), path, None)
                if found is not None:
                    break
        path = found.submodule_search_locations if found is not None else None
        if found is None or (path is None and i + 1 < len(parts)):
            found = None
            break
    if found is None or not str(found.origin).endswith(".py"):
        raise ConfigError(f"There is no module {spec.where!r} with a Python source file.", FORM)
    return Path(str(found.origin))


def _content(file: Path) -> bytes:
    with file.open("rb") as f:
        content = f.read(FILE_LIMIT + 1)
    if len(content) > FILE_LIMIT:
        raise ConfigError(f"{file} is larger than {FILE_LIMIT:,} bytes.")
    return content


def _check_class(spec: _Spec, file: Path, content: bytes) -> None:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError) as e:
        raise ConfigError(f"{file} is no Python: {e}.") from None
    classes = [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    imported = {n.asname or n.name for n in ast.walk(tree) if isinstance(n, ast.alias)}
    if spec.name not in classes and not imported & {spec.name, "*"}:
        raise ConfigError(f"{file} has no class {spec.name!r}.{suggest(spec.name, classes)}",
                          f"Classes in it: {', '.join(classes) or 'none'}.")  # fmt: skip


def ledger_file() -> Path:
    """Where this user's admitted sources stand."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.expanduser("~/.local/state")
    return Path(state) / "vitc" / "trusted_sources"


def _admit(sha256: str) -> None:
    admitted = _inherited() | {sha256}
    os.environ[TRUSTED_ENV] = ",".join(sorted(admitted))  # for the processes this one starts
    if sha256 in _ledger():
        return
    with contextlib.suppress(OSError):
        ledger_file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ledger_file().open("a", encoding="ascii") as f:
            f.write(f"{sha256}\n")


def _inherited() -> set[str]:
    return {sha256 for sha256 in os.environ.get(TRUSTED_ENV, "").split(",") if sha256}


def _ledger() -> set[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return set(ledger_file().read_text("ascii").split())
    return set()


def _made(config: DataConfig) -> Any:
    """The object, its file's content being what was admitted."""
    spec = _spec(str(config.path))
    name_again = f"name it yourself: --data '{config.path}'"
    if config.path_sha256 not in _inherited() | _ledger():
        raise ConfigError(
            f"This config takes its images from {spec.name} of {spec.where}, which you have not "
            "named here yourself. Its code was not run.",
            f"Read the file first; if you trust it, {name_again}",
        )
    file = _file(spec)
    content = _content(file)
    if hashlib.sha256(content).hexdigest() != config.path_sha256:
        raise ConfigError(f"{file} has changed since it was named.",
                          f"Restore it; or, in a new run, {name_again}")  # fmt: skip
    module = _module(spec, file, content, config.path_sha256)
    cls = getattr(module, spec.name, None)
    if not isinstance(cls, type):
        raise ConfigError(f"{spec.name} of {file} is no class.", FORM)
    try:
        inspect.signature(cls).bind(**spec.settings)
    except TypeError as e:
        raise ConfigError(f"{spec.name} of {file}: {e}.",
                          f"Settings: '...:{spec.name}(NAME=VALUE)'") from None  # fmt: skip
    try:
        return cls(**spec.settings)
    except VitcError:
        raise
    except Exception as e:
        raise ConfigError(f"{spec.name} of {file} cannot be made: {type(e).__name__}: {e}.") from e


def _module(spec: _Spec, file: Path, content: bytes, sha256: str) -> ModuleType:
    """The module, imported once a process: a file from just these bytes."""
    by_path = spec.where.endswith(".py") or "/" in spec.where
    name = f"vitc_source_{sha256}" if by_path else spec.where
    if name in sys.modules:
        return sys.modules[name]
    try:
        if not by_path:
            return importlib.import_module(name)
        module = ModuleType(name)
        module.__file__ = str(file)
        sys.modules[name] = module
        sys.path.insert(0, str(file.parent))
        try:
            exec(compile(content, str(file), "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(str(file.parent))
        return module
    except (Exception, SystemExit) as e:
        raise ConfigError(f"{file} fails when it is imported: {type(e).__name__}: {e}.") from e
