"""Classes from outside the package: found, trusted, imported. Free of torch at import.

A stem (docs/stems.md) or a source of images (docs/sources.md) can be a class in anybody's file.
Importing a file runs it, so one function, `_import`, does that, and only with bytes whose SHA-256
is *admitted*. Naming a class (`--model.stem my.py:MyStem`, or the same in Python) admits its file
as it is at that moment; a config, run or study that somebody wrote down admits nothing, until
`trust` is called on it (`--trust`). What is admitted stands in a file of the user's,
`$XDG_STATE_HOME/vitc/trusted.json` (by default under ~/.local/state), and, for the processes this
one starts, in the environment variable VITC_TRUSTED.

A file that lies where it was admitted may import its neighbours, as a script may. Its copy in a run
folder, or the same bytes at any other place, is loaded alone: what lies beside it there was never
admitted. Compiled files (__pycache__) are not read.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vitc.errors import ConfigError, VitcError, suggest

SOURCES = "sources"  # where a run and a study keep their copies
NAMING = ("config.json", "plan.json")  # files of a run and of a study that name classes
TRUSTED_ENV = "VITC_TRUSTED"
FORM = "Write path/to/file.py:Class or package.module:Class."
FILE_LIMIT, JSON_LIMIT = 1 << 20, 64 << 20  # bytes; a stranger's file must not fill the memory
SETTINGS_LIMIT = 2000  # characters
_LONGEST = 6000  # characters; matching a stranger's text must not take long
_CLASS = re.compile(r"(.+?(?<!:)):([^\W\d]\w*)(\(.*\))?")


# -- what may come from outside --------------------------------------------------------------------


class Kind(NamedTuple):
    """What a class from outside is to be."""

    noun: str
    option: str
    """How the user names one."""
    given: tuple[str, ...]
    """What vitc calls the class with, besides its settings."""
    contract: str
    """What such a class has to be."""


STEM = Kind(
    "stem",
    "--model.stem",
    ("in_chans", "embed_dim"),
    "A stem is a torch.nn.Module, made with in_chans and embed_dim, that maps (B, in_chans, H, W) "
    "to (B, embed_dim, H / reduction, W / reduction) and has an integer `reduction`.",
)
SOURCE = Kind("source", "--data", (), "What a source has: docs/sources.md.")


class Outsider(NamedTuple):
    """A class from outside as a config names it; nothing of it has been looked at."""

    kind: Kind
    source: str
    """path/to/file.py:Class or package.module:Class, with settings if it has any."""
    sha256: str = ""
    """Of its file; empty where a person wrote the config."""

    @property
    def what(self) -> str:
        """The class, with its settings if it has any."""
        parts = outside_parts(self.source)
        return repr(self.source[:200]) if parts is None else parts[1] + parts[2]

    @property
    def place(self) -> str:
        """The file or module."""
        parts = outside_parts(self.source)
        return repr(self.source[:200]) if parts is None else parts[0]


def outside_parts(source: str) -> tuple[str, str, str] | None:
    """(file or module, class, settings in brackets or nothing) of a source; None: no such form."""
    if len(source) > _LONGEST or not source.isprintable():
        return None
    found = _CLASS.fullmatch(source)
    return None if found is None else (found[1], found[2], found[3] or "")


def is_path(where: str) -> bool:
    """Whether the first of `outside_parts` is a path, not the dotted name of a module."""
    return where.endswith(".py") or "/" in where or os.sep in where


# -- named by the user -----------------------------------------------------------------------------


def name(one: Outsider) -> Outsider:
    """What the user names just now: with an absolute path and the hash of its file; trusted.

    `one.sha256` is not looked at. The file is read, not run. Raises ConfigError: no such file,
    module or class (with suggestions), a file that is no Python, settings that are no literals.
    """
    spec = parse(one.kind, one.source)
    file = _find(spec)
    content = _read(spec.kind, file)
    _check_class(spec, file, content)
    digest = sha(content)
    _admit(digest, str(file))
    where = str(file) if is_path(spec.where) else spec.where
    return Outsider(one.kind, f"{where}:{spec.what}", digest)


class Spec(NamedTuple):
    """`path/to/my.py:MyStem(width=32)` in its parts."""

    kind: Kind
    where: str
    """A path, or the dotted name of a module."""
    name: str
    """The class."""
    settings: dict[str, Any]
    """What the class is called with besides what its kind is given."""
    what: str
    """The class and its settings as they were written."""


def parse(kind: Kind, source: str) -> Spec:
    """The parts of a source. Raises ConfigError: another form, settings not literal."""
    parts = outside_parts(source)
    if parts is None:
        told = repr(source[:200])
        raise ConfigError(
            f"The {kind.noun} {told} names no class.{_classes_hint(kind, source)}", FORM
        )
    where, cls, call = parts
    return Spec(kind, where, cls, _settings(kind, call) if call else {}, cls + call)


def _classes_hint(kind: Kind, source: str) -> str:
    """What a file that was named without a class has."""
    with contextlib.suppress(ConfigError, OSError):
        file = Path(source.rstrip(":")).expanduser()
        if file.suffix == ".py" and file.is_file():
            classes = sorted(_names_in(_tree(file, _read(kind, file)))[0])
            return f" Classes in it: {', '.join(classes) or 'none'}."
    return ""


def _settings(kind: Kind, call: str) -> dict[str, Any]:
    """`(width=32, act="gelu")` as values; nothing in it is evaluated but literals."""
    wrong = ConfigError(
        f"The {kind.noun}'s settings {_short(call)} cannot be read: give them as NAME=VALUE, each "
        "value a number, a quoted text, True, False, None, or a list of those.",
        "For example, in quotes for the shell: 'my.py:MyClass(width=32, act=\"gelu\")'",
    )
    if len(call) > SETTINGS_LIMIT:
        raise wrong
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise wrong
        values = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise wrong from None
    if len(values) < len(node.keywords):  # **settings, or a name twice
        raise wrong
    for name in kind.given:
        if name in values:
            raise ConfigError(
                f"The {kind.noun}'s settings set {name}, which comes from the model.",
                f"Set --model.{name} instead.",
            )
    return values


def _find(spec: Spec) -> Path:
    """The file a spec names. Raises ConfigError where there is none."""
    if not is_path(spec.where):
        return _find_module(spec)
    file = Path(os.path.abspath(os.path.expanduser(spec.where)))
    noun = spec.kind.noun
    if not file.exists():
        near = suggest(file.name, [p.name for p in file.parent.glob("*.py")])
        raise ConfigError(f"There is no file {spec.where} for the {noun} {spec.name}.{near}", FORM)
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"The {noun}'s file {spec.where} is no Python file (.py).", FORM)
    return file


def _find_module(spec: Spec) -> Path:
    """The file of a module. None of its parents is imported: nothing runs."""
    path: Any = None
    found: Any = None
    parts = spec.where.split(".")
    for i in range(len(parts) if all(part.isidentifier() for part in parts) else 0):
        inner = ".".join(parts[: i + 1])
        found = _module_spec(inner, path) if not i or path is not None else None
        if found is None:
            break
        path = found.submodule_search_locations  # None: no package, so it has no modules in it
    if found is None:
        beside = Path(f"{spec.where}.py"), Path(spec.where)
        there = next((p for p in beside if p.is_file()), None)
        if there is not None and there.suffix != ".py":
            raise ConfigError(f"The {spec.kind.noun}'s file {there} is no Python file (.py).", FORM)
        meant = f" Did you mean {str(there)!r}?" if there else ""
        raise ConfigError(
            f"There is no module {spec.where!r} on Python's path.{meant}",
            f"{FORM} A module must be installed, or on PYTHONPATH.",
        )
    if not found.origin or not found.origin.endswith(".py"):
        raise ConfigError(f"The module {spec.where} has no Python source file.", FORM)
    return Path(os.path.abspath(found.origin))


def _module_spec(name: str, path: Any) -> Any:
    for finder in sys.meta_path:
        with contextlib.suppress(AttributeError, ImportError):
            spec = finder.find_spec(name, path, None)
            if spec is not None:
                return spec
    return None


def _read(kind: Kind, file: Path) -> bytes:
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


def sha(content: bytes) -> str:
    """SHA-256, as a ledger and a config have it."""
    return hashlib.sha256(content).hexdigest()


def _check_class(spec: Spec, file: Path, content: bytes) -> None:
    """Refuse a class that the file does not have, without running the file."""
    classes, others = _names_in(_tree(file, content))
    if spec.name not in classes and not others & {spec.name, "*"}:
        known = f"Classes in it: {', '.join(sorted(classes)) or 'none'}."
        raise ConfigError(f"{file} has no class {spec.name!r}.{suggest(spec.name, classes)}", known)


def _tree(file: Path, content: bytes) -> ast.Module:
    try:
        return ast.parse(content)
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno}, is no Python: {error.msg}.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{file} is no Python: {error}.") from None


def _names_in(tree: ast.Module) -> tuple[set[str], set[str]]:
    """(classes a file defines, other names it binds); "*" among them for a star import."""
    nodes = list(ast.walk(tree))
    classes = {n.name for n in nodes if isinstance(n, ast.ClassDef)}
    others = {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}
    others |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    others |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    return classes, others


# -- trusted ---------------------------------------------------------------------------------------


def trust(path: str | Path) -> list[Outsider]:
    """Admit the stems and sources from outside that a run folder, study or config file names.

    Returns them; none is imported here. What is admitted is the content with the hash that the
    config gives, at the place it names or as the folder's own copy; a config without a hash, as a
    person writes it, is named. Raises ConfigError: nothing there that can be read, or neither place
    has that content. A source that is nowhere is only said if there is something else to trust: not
    all that one does with a run needs its images.
    """
    path = Path(path)
    files = [path / n for n in NAMING if (path / n).is_file()] if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} is no run and no study: it has no config.json or plan.json.")
    found: list[Outsider] = []
    gone: list[ConfigError] = []
    for one in dict.fromkeys(one for file in files for one in _named_in(file)):
        try:
            found.append(_trust(one, path if path.is_dir() else path.parent))
        except ConfigError as error:
            if one.kind == STEM:
                raise
            gone.append(error)
    if gone and not found:
        raise gone[0]
    for missing in gone:
        say(missing.message)
    return found


def _trust(one: Outsider, folder: Path) -> Outsider:
    if not one.sha256:
        return name(one)
    file, _ = with_hash(one, folder)
    _admit(one.sha256, str(file) if file == found_at(one) else one.source)
    return one


def _named_in(file: Path) -> Iterator[Outsider]:
    """Every class from outside that a JSON file names, nested or dotted."""
    try:
        if not file.is_file():
            raise ConfigError(f"There is no run folder, study or config file {file}.")
        if file.stat().st_size > JSON_LIMIT:
            raise ConfigError(f"{file} is larger than {JSON_LIMIT >> 20} MiB: not ours.")
        flat = dict(_leaves(json.loads(file.read_bytes()), ""))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}.") from error
    for leaf, value in flat.items():
        table, _, last = leaf.rpartition(".")
        if not isinstance(value, str):
            continue
        if last == "stem" and ":" in value:
            yield Outsider(STEM, value)
        elif leaf.endswith("stem.source"):
            yield Outsider(STEM, value, str(flat.get(f"{table}.sha256") or ""))
        elif leaf.endswith("data.path") and flat.get(f"{table}.source") == "outside":
            yield Outsider(SOURCE, value, str(flat.get(f"{table}.path_sha256") or ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield path, value
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def admitted() -> dict[str, str]:
    """SHA-256 of every admitted file -> where it was when it was named."""
    entries = _ledger() or {}
    known = {sha: str(entry.get("source", "")) for sha, entry in entries.items()}
    return known | _inherited()


def ledger_file() -> Path:
    """Where stands what this user has admitted."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as its specification says; else it would follow the user around
        state = os.path.expanduser("~/.local/state")
    return Path(state) / "vitc" / "trusted.json"


def _admit(sha256: str, source: str) -> None:
    inherited = _inherited()
    if inherited.get(sha256) != source:
        os.environ[TRUSTED_ENV] = json.dumps({**inherited, sha256: source})
    entries = _ledger()
    if entries is None or entries.get(sha256, {}).get("source") == source:
        return
    date = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        _write_ledger({**entries, sha256: {"source": source, "date": date}})
    except OSError as error:
        say(
            f"{ledger_file()} cannot be written ({error.strerror}): {source} is trusted by this "
            "process only."
        )


def _inherited() -> dict[str, str]:
    """What this process, or one that it was started by, has admitted."""
    try:
        values = json.loads(os.environ.get(TRUSTED_ENV) or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return {}
    return {str(sha): str(source) for sha, source in values.items()}


def _ledger() -> dict[str, dict[str, str]] | None:
    """The ledger's entries, none where there is no ledger; None, and said, where it is damaged."""
    file = ledger_file()
    try:
        entries = json.loads(file.read_bytes()) if file.stat().st_size <= JSON_LIMIT else None
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        entries = None
    if isinstance(entries, dict) and all(isinstance(e, dict) for e in entries.values()):
        return entries
    say(
        f"{file} is damaged: what it trusted is not; what you name is trusted by this process "
        "only. Delete the file to begin another."
    )
    return None


def _write_ledger(entries: Mapping[str, Any]) -> None:
    """Replace the ledger as a whole: a reader sees the old or the new one. Raises OSError."""
    file = ledger_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    number, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(entries, indent=1) + "\n")
        os.replace(temporary, file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


@cache
def say(text: str) -> None:
    """Warn, once a process."""
    logging.getLogger("vitc").warning(text)


def refuse_unknown(one: Outsider, digest: str, where: Path | None = None) -> None:
    """The choke point: raise ConfigError unless a file of this hash was admitted.

    `where`: the run, study or config that names it, for the message.
    """
    if digest in admitted():
        return
    kept = copies_in(where, digest) if where else []
    raise ConfigError(
        f"{where or 'This config'} names a {one.kind.noun} from outside, {one.what} of "
        f"{one.place}, that you have not named here yourself. Its code was not run.",
        f"Read {kept[0] if kept else 'that file'} first. If you trust it, repeat the command with "
        "--trust (in Python: vitc.plugins.trust(path)).",
    )


# -- found again -----------------------------------------------------------------------------------


def copies_in(folder: Path, digest: str) -> list[Path]:
    """Files by whose names they could be the copy; what is in them is for the caller to check."""
    files = sorted((folder / SOURCES).glob("*.py"))
    return [file for file in files if file.name.startswith(f"{digest[:12]}_")]


def found_at(one: Outsider) -> Path | None:
    """The file that a config names, if there is one."""
    with contextlib.suppress(ConfigError):
        return _find(parse(one.kind, one.source))
    return None


def with_hash(one: Outsider, folder: Path | None) -> tuple[Path, bytes]:
    """The file with the content that a config means: where it says, or the copy in `folder`.

    Nothing is said of whether it is admitted. Raises ConfigError: that content is nowhere.
    """
    spec = parse(one.kind, one.source)
    if not one.sha256:
        file = _find(spec)
        return file, _read(one.kind, file)
    places = [found_at(one)]
    if folder is not None:
        folder = Path(os.path.abspath(folder))
        for near in (folder, folder.parent.parent):  # a trial's study is two above it
            places += copies_in(near, one.sha256)
    for place in places:
        with contextlib.suppress(ConfigError):
            if place is None or not place.is_file():
                continue
            content = _read(one.kind, place)
            if sha(content) == one.sha256:
                return place, content
    gone = "has changed since it was named" if places[0] else "is not there"
    copy = f", and {folder} has no intact copy of it" if folder else ""
    raise ConfigError(
        f"{one.place}, which defines the {one.kind.noun} {one.what}, {gone} (SHA-256 "
        f"{one.sha256[:12]}... is wanted){copy}.",
        f"Restore it; or name it as it is now, in a new run: {one.kind.option} '{one.source}'",
    )


# -- imported --------------------------------------------------------------------------------------


def load(one: Outsider) -> tuple[Any, dict[str, Any], str, str]:
    """(what the name stands for or None, settings, words for messages, SHA-256): file imported.

    Raises ConfigError: the file was not admitted (see `trust`), is not what the hash says, or
    raises while it is imported.
    """
    if one.sha256:  # before anything is looked for
        refuse_unknown(one, one.sha256)
    spec = parse(one.kind, one.source)
    file, content = with_hash(one, None)
    module = _import(one, spec, file, content)
    found = getattr(module, spec.name, None)
    return found, spec.settings, f"{spec.name} of {file}", sha(content)


def make(
    kind: Kind, cls: Any, given: Mapping[str, Any], settings: Mapping[str, Any], said: str
) -> Any:
    """`cls(**given, **settings)`. Raises ConfigError: no class, other arguments, it raises."""
    if not isinstance(cls, type):
        raise ConfigError(f"The {kind.noun} {said} is no class.", kind.contract)
    _check_arguments(kind, cls, settings, said)
    try:
        return cls(**given, **settings)
    except VitcError:
        raise
    except Exception as error:
        raise ConfigError(f"The {kind.noun} {said} cannot be built: {why(error, cls)}") from error


def why(error: BaseException, cls: type) -> str:
    """`line 3: ValueError: ...`: what went wrong, and where in the file of a class."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return _line(error, file or "") + _words(error)


def _check_arguments(kind: Kind, cls: type, settings: Mapping[str, Any], said: str) -> None:
    """Refuse settings the class does not know, before it is called."""
    try:
        known = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a class that does not tell
        return
    any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
    names = [n for n, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [n for n in names if n not in kind.given]
    the = f"The {kind.noun} {said}"
    for name in kind.given:
        if name not in names and not any_name:
            takes = ", ".join(names) or "nothing"
            raise ConfigError(f"{the} does not take {name}; it takes {takes}.", kind.contract)
    for name in settings:
        if name not in names and not any_name:
            raise ConfigError(
                f"{the} has no setting {name!r}.{suggest(name, own)}",
                f"Its settings: {', '.join(own) or 'none'}.",
            )
    missing = [n for n in own if known[n].default is inspect.Parameter.empty and n not in settings]
    if missing:
        example = f"'...:{cls.__name__}({missing[0]}=...)'"
        raise ConfigError(
            f"{the} needs {', '.join(missing)}, which has no default.",
            f"Give it in brackets: {example}",
        )


def _import(one: Outsider, spec: Spec, file: Path, content: bytes) -> ModuleType:
    """Run admitted bytes as a module, once a process. Raises ConfigError: they raise."""
    sha256 = sha(content)
    refuse_unknown(one, sha256)
    at_home = admitted()[sha256] == str(file)
    if at_home and not is_path(spec.where):
        name = spec.where
        if _MODULES.setdefault(name, sha256) != sha256:
            raise ConfigError(
                f"{file} has changed since this process imported {name}.", "Start another process."
            )
    else:
        name = f"vitc_outside_{sha256}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _torch_apart():
            if name == spec.where:
                return importlib.import_module(name)
            return _run(name, file, content, file.parent if at_home else None)
    except (Exception, SystemExit) as error:
        _MODULES.pop(name, None)
        alone = (
            None
            if at_home or not isinstance(error, ImportError)
            else (
                "It was loaded alone, away from its package, so imports from its own folder fail. "
                "Name it again from there, or keep the class in one file."
            )
        )
        raise ConfigError(
            f"The {one.kind.noun}'s file {file} fails when it is imported: "
            f"{_line(error, str(file))}{_words(error)}",
            alone,
        ) from error


@contextlib.contextmanager
def _torch_apart() -> Iterator[None]:
    """Whatever a file draws or makes at import, the model's own weights are the same, and tensors
    at module level are real ones though the first model may be a meta one. Where torch has not
    been imported there is nothing to keep."""
    if "torch" not in sys.modules:
        yield
        return
    from torch import device
    from torch.random import fork_rng

    with fork_rng(devices=[]), device("cpu"):
        yield


_MODULES: dict[str, str] = {}  # module -> SHA-256 of its file when this process imported it


def _run(name: str, file: Path, content: bytes, folder: Path | None) -> ModuleType:
    """A module made from these very bytes: no compiled file, and no second read, comes between."""
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


def _line(error: BaseException, file: str) -> str:
    """`line 3: `, the last line of `file` on the way to the error."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "


def _words(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {_short(text)}." if text else f"{type(error).__name__}."


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."
