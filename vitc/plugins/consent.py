"""Which custom files may run on this machine, and where is the content that was trusted?

Naming a class (`--model.stem my.py:MyStem`, or the same in Python) trusts its file as it is now.
A config, run or study folder trusts nothing by itself: that takes `trust`, on the command line
`--trust`. Trusted hashes are lines of `$XDG_STATE_HOME/vitc/trusted.txt` (~/.local/state by
default), in the form of sha256sum. Worker processes get those of their parent in the environment
variable VITC_TRUSTED: inherited on this machine, set from `consent()` on another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from vitc.errors import ConfigError, suggest
from vitc.files import read_json
from vitc.plugins import names
from vitc.plugins.names import EXPORTED, SOURCE, Custom, Kind, is_path, sha

NAMING = ("config.json", "plan.json")  # files of a run and of a study that name classes
FOLDS = "folds.json"  # in a folder of runs that are one classifier
TRUSTED_ENV = "VITC_TRUSTED"
ARCHIVE = ".pt2"  # of torch.export
_Config = TypeVar("_Config")


@dataclass(frozen=True, kw_only=True)
class CustomConfig:
    """What every config of a class of the user's own has."""

    KIND: ClassVar[Kind]

    source: str = ""
    """path/to/file.py:Class or package.module:Class, with settings if it has any:
    my.py:Net(width=32)."""
    sha256: str = ""
    """SHA-256 of the file that defines it; filled in when it is named."""

    @classmethod
    def named(cls, source: str) -> Self:
        """The class that the user names; its file is trusted as it is. Raises ConfigError."""
        one = name_class(cls.KIND, source)
        return cls(source=one.source, sha256=one.sha256)

    @property
    def custom(self) -> Custom:
        return Custom(self.KIND, self.source, self.sha256)

    def problems(self) -> list[str]:
        """What is wrong with it, and what its component finds."""
        found: list[str] = super().problems()  # type: ignore[misc]
        return found + self.custom.problems()


def name_class(kind: Kind, source: str) -> Custom:
    """Name a class as its user: trust its file, and return it with absolute path and hash.

    The file is read, not run. Raises ConfigError: no such file, module or class (with suggestions),
    a file that is not Python, settings that are not literals.
    """
    one = Custom(kind, source)
    where, cls, _ = names.parse(one)
    file = names.find(one)
    content = names.read_source(kind, file)
    classes, others = names.names_in(file, content)
    if cls not in classes and not others & {cls, "*"}:
        known = f"Classes in it: {', '.join(sorted(classes)) or 'none'}."
        raise ConfigError(f"{file} has no class {cls!r}.{suggest(cls, classes)}", known)
    digest = sha(content)
    _remember(digest, str(file))
    return Custom(kind, f"{file if is_path(where) else where}:{one.what}", digest)


# -- trust -----------------------------------------------------------------------------------------


def trust(path: str | Path) -> list[Custom]:
    """Trust the custom classes that a run folder, folder of folds, study folder or config file
    names, or a torch.export archive (.pt2).

    Returns them; none is imported here. Trusted is the content with the hash that the config gives,
    in the place it names or in the folder's copy; in a config without a hash, the file as it is.
    Raises ConfigError: no config or plan there, or a file without that content. A missing source
    of images is only a warning if something else is trusted: not every use of a run reads images.
    """
    path = Path(path)
    if path.suffix == ARCHIVE:
        one = Custom(EXPORTED, str(path.resolve()), sha(path.read_bytes()))
        _remember(one.sha256, one.source)
        return [one]
    if (path / FOLDS).is_file():  # each run has its copy of the file
        runs = sorted(file.parent for file in path.glob(f"*/{NAMING[0]}"))
        return list(dict.fromkeys(one for run in runs for one in trust(run)))
    files = [path / n for n in NAMING if (path / n).is_file()] if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} is not a run or study: it has no config.json or plan.json.")
    found: list[Custom] = []
    missing: list[ConfigError] = []
    for one in dict.fromkeys(one for file in files for one in _named_in(file)):
        try:
            if not one.sha256:
                found.append(name_class(one.kind, one.source))
                continue
            file, _ = names.locate(one, path if path.is_dir() else path.parent)
            _remember(one.sha256, str(file) if file == names.find_if_there(one) else "")
            found.append(one)
        except ConfigError as error:
            if one.kind is not SOURCE:
                raise
            missing.append(error)
    if missing and not found:
        raise missing[0]
    for absent in missing:
        warn_once(absent.message)
    return found


def _named_in(file: Path) -> Iterator[Custom]:
    """Every custom class that a JSON file names, nested or dotted."""
    if not file.is_file():
        raise ConfigError(f"There is no run folder, study or config file {file}.")

    def texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from texts(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(value, str):
            yield path, value

    try:
        flat = dict(texts(read_json(file), ""))
    except RecursionError as error:
        raise ConfigError(f"{file} is damaged: nested too deep.") from error
    for leaf, value in flat.items():
        table, _, last = leaf.rpartition(".")
        component = table.rpartition(".")[2]
        if last in names.NAMED_BY and names.class_parts(value):
            yield Custom(names.NAMED_BY[last], value)
        elif last == "source" and component in names.NAMED_BY:
            yield Custom(names.NAMED_BY[component], value, flat.get(f"{table}.sha256", ""))
        elif leaf.endswith("data.path") and flat.get(f"{table}.source") in ("custom", "outside"):
            yield Custom(SOURCE, value, flat.get(f"{table}.path_sha256", ""))


def trusted() -> set[tuple[str, str]]:
    """(SHA-256, file where it was named, or "") of everything that may be imported."""
    text = os.environ.get(TRUSTED_ENV, "")
    with contextlib.suppress(OSError):
        text += "\n" + trusted_file().read_text(encoding="utf-8", errors="replace")
    found = set(re.findall(r"^([0-9a-f]{64}) [ *](.*)$", text, re.MULTILINE))
    with contextlib.suppress(OSError):  # as earlier versions wrote it
        old = trusted_file().with_suffix(".json").read_text(encoding="utf-8", errors="replace")
        found.update(re.findall(r'"([0-9a-f]{64})": \{\s*"source": "([^"\\]*)"', old))
    return found


def consent() -> str:
    """The value of VITC_TRUSTED for a worker on another machine: all that is trusted here."""
    return "".join(f"{digest}  {file}\n" for digest, file in sorted(trusted()))


def trusted_file() -> Path:
    """The file that lists what this user trusts."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as its specification requires
        state = os.path.expanduser("~/.local/state")
    return Path(state) / "vitc" / "trusted.txt"


def _remember(digest: str, file: str) -> None:
    """Trust a file: in this process, in those it starts, and in later ones of this user."""
    if (digest, file) in trusted():
        return
    line = f"{digest}  {file}\n"
    os.environ[TRUSTED_ENV] = os.environ.get(TRUSTED_ENV, "").rstrip("\n") + "\n" + line
    path = trusted_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line)
    except OSError as error:
        warn_once(
            f"{path} cannot be written ({error.strerror}): {file or digest} is trusted by this "
            "process only."
        )


@cache
def warn_once(text: str) -> None:
    """Warn, once a process."""
    logging.getLogger("vitc").warning(text)


def trusted_archive(path: Path) -> bytes:
    """The content of an archive, which can run code. Raises ConfigError unless it is trusted."""
    content = path.read_bytes()
    digest = sha(content)
    if any(digest == known for known, _ in trusted()):
        return content
    raise ConfigError(
        f"{path} was not exported on this machine, and is not trusted: reading a torch.export "
        "archive can run code. It was not read.",
        "If you trust who made it, repeat the command with --trust (in Python: "
        "vitc.plugins.trust(path)), or ask for an .onnx file, which runs no code.",
    )


def require_trust(one: Custom, digest: str, named_in: Path | None = None) -> None:
    """Raises ConfigError unless a file of this hash is trusted. Every import passes here.

    `named_in`: the run, study or config that names the class, for the message.
    """
    if any(digest == known for known, _ in trusted()):
        return
    kept = names.copies_in(named_in, digest) if named_in else []
    raise ConfigError(
        f"{named_in or 'This config'} names a custom {one.kind.noun}, {one.what} of {one.place}, "
        "that is not trusted on this machine. Its code was not run.",
        f"Read {kept[0] if kept else 'that file'} first. If you trust it, repeat the command with "
        "--trust (in Python: vitc.plugins.trust(path)).",
    )


# -- configs with custom classes -------------------------------------------------------------------
# A component of a config that is a custom class has `source`, `sha256` and a property `custom`.


def customs(config: Any) -> Iterator[Custom]:
    """The custom classes of a config and its components."""
    if isinstance(getattr(config, "custom", None), Custom):
        yield config.custom
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from customs(value)


def with_sources(config: _Config, folder: str | Path, strict: bool = True) -> _Config:
    """The config with its custom classes found again for the run or study in `folder`.

    A file that still has the hash of the config is used where it is, else the copy in `folder` or
    in the study of the trial `folder`. Raises ConfigError if `strict`: a file is not trusted, or
    its content is nowhere; such a class is otherwise left as it is.
    """
    folder = Path(folder)
    names_it = folder.is_file() or any((folder / name).is_file() for name in NAMING)
    named_in = folder if names_it else None

    def found_again(one: Custom) -> dict[str, str]:
        try:
            if one.sha256:
                require_trust(one, one.sha256, named_in)
            file, content = names.locate(one, folder.parent if folder.is_file() else folder)
            digest = sha(content)
            require_trust(one, digest, named_in)
        except ConfigError:
            if strict:
                raise
            return {}
        if file == names.find_if_there(one):
            return {"sha256": digest}
        warn_once(f"{one.place} has changed or no longer exists; using the copy {file}.")
        return {"source": f"{file}:{one.what}", "sha256": digest}

    return _with_each(config, found_again)


def without_folders(config: _Config) -> _Config:
    """The config with custom files by name alone, for a folder that holds their copies."""

    def by_name(one: Custom) -> dict[str, str]:
        name = Path(one.place).name if is_path(one.place) else one.place
        return {"source": f"{name}:{one.what}"}

    return _with_each(config, by_name)


def _with_each(config: _Config, changes: Callable[[Custom], dict[str, str]]) -> _Config:
    """The config with `changes` of each custom class in it."""
    config_: Any = config
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config_):
        value = getattr(config_, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            new = _with_each(value, changes)
            if new is not value:
                changed[field.name] = new
    if isinstance(getattr(config_, "custom", None), Custom):
        changed |= changes(config_.custom)
    return dataclasses.replace(config_, **changed) if changed else config


def copies(config: Any) -> dict[str, bytes]:
    """Name -> content of the files that a run folder keeps in `sources/`.

    Raises ConfigError: a file is not what it was.
    """
    kept = {}
    for one in customs(config):
        file, content = names.locate(one)
        prefix = f"{sha(content)[:12]}_"
        kept[prefix + file.name.removeprefix(prefix)] = content  # also of a copy
    return kept
