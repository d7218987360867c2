"""A stem from outside the package: found, trusted, kept, built. Free of torch at import.

Importing a file runs it, so one function, `_import`, does that, and only with bytes whose SHA-256
is *admitted*. Naming a stem (`--model.stem my.py:MyStem`, or the same in Python) admits its file as
it is at that moment; a config, run or study that somebody wrote down admits nothing, until `trust`
is called on it (`--trust`). What is admitted stands in a file of the user's,
`$XDG_STATE_HOME/vitc/trusted_stems.json` (by default under ~/.local/state), and, for the processes
this one starts, in the environment variable VITC_TRUSTED_STEMS.

A file that lies where it was admitted may import its neighbours, as a script may. Its copy in a run
folder, or the same bytes at any other place, is loaded alone: what lies beside it there was never
admitted. Compiled files (__pycache__) are not read.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from vitc.errors import ConfigError, VitcError, suggest
from vitc.models.config import ModelConfig, ViTConfig
from vitc.models.stem_config import OutsideStemConfig, outside_parts

if TYPE_CHECKING:
    from torch import nn

SOURCES = "sources"  # where a run and a study keep their copies
TRUSTED_ENV = "VITC_TRUSTED_STEMS"
FORM = "Write path/to/file.py:Class or package.module:Class."
FILE_LIMIT, JSON_LIMIT = 1 << 20, 64 << 20  # bytes; a stranger's file must not fill the memory
SETTINGS_LIMIT = 2000  # characters
_NAMING = ("config.json", "plan.json")  # files of a run and of a study that name stems


# -- named by the user -----------------------------------------------------------------------------


def name_stem(config: OutsideStemConfig) -> OutsideStemConfig:
    """The config of a stem that the user names just now: absolute path, hash of its file; trusted.

    `config.sha256` is not looked at. The file is read, not run. Raises ConfigError: no such file,
    module or class (with suggestions), a file that is no Python, settings that are no literals.
    """
    spec = parse(config.source)
    file = _find(spec)
    content = _read(file)
    _check_class(spec, file, content)
    sha256 = _sha(content)
    _admit(sha256, str(file))
    where = str(file) if spec.is_file else spec.where
    return OutsideStemConfig(source=f"{where}:{spec.what}", sha256=sha256)


class Spec(NamedTuple):
    """`path/to/my.py:MyStem(width=32)` in its parts."""

    where: str
    """A path, or the dotted name of a module."""
    name: str
    """The class."""
    settings: dict[str, Any]
    """What the class is called with besides in_chans and embed_dim."""
    what: str
    """The class and its settings as they were written."""

    @property
    def is_file(self) -> bool:
        return self.where.endswith(".py") or "/" in self.where or os.sep in self.where


def parse(source: str) -> Spec:
    """The parts of a stem's source. Raises ConfigError: another form, settings not literal."""
    parts = outside_parts(source)
    if parts is None:
        said = repr(source[:200])
        raise ConfigError(f"The stem {said} names no class.{_classes_hint(source)}", FORM)
    where, name, call = parts
    return Spec(where, name, _settings(call) if call else {}, name + call)


def _classes_hint(source: str) -> str:
    """What a file that was named without a class has."""
    with contextlib.suppress(ConfigError, OSError):
        file = Path(source.rstrip(":")).expanduser()
        if file.suffix == ".py" and file.is_file():
            classes = sorted(_names_in(_tree(file, _read(file)))[0])
            return f" Classes in it: {', '.join(classes) or 'none'}."
    return ""


def _settings(call: str) -> dict[str, Any]:
    """`(width=32, act="gelu")` as values; nothing in it is evaluated but literals."""
    wrong = ConfigError(
        f"The stem's settings {_short(call)} cannot be read: give them as NAME=VALUE, each value a "
        f"number, a quoted text, True, False, None, or a list of those.",
        "For example, in quotes for the shell: 'my.py:MyStem(width=32, act=\"gelu\")'",
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
    own = sorted({"in_chans", "embed_dim"} & values.keys())
    if own:
        raise ConfigError(
            f"The stem's settings set {own[0]}, which comes from the model.",
            f"Set --model.{own[0]} instead.",
        )
    return values


def _find(spec: Spec) -> Path:
    """The file a spec names. Raises ConfigError where there is none."""
    if not spec.is_file:
        return _find_module(spec.where)
    file = Path(os.path.abspath(os.path.expanduser(spec.where)))
    if not file.exists():
        near = suggest(file.name, _neighbours(file.parent))
        raise ConfigError(f"There is no file {spec.where} for the stem {spec.name}.{near}", FORM)
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"The stem's file {spec.where} is no Python file (.py).", FORM)
    return file


def _find_module(name: str) -> Path:
    """The file of a module. None of its parents is imported: nothing runs."""
    path: Any = None
    spec = None
    parts = name.split(".")
    if all(part.isidentifier() for part in parts):
        for i in range(len(parts)):
            spec = _module_spec(".".join(parts[: i + 1]), path)
            if spec is None:
                break
            path = spec.submodule_search_locations
            if path is None and i + 1 < len(parts):
                spec = None  # a module has no modules in it
                break
    if spec is None:
        beside = Path(f"{name}.py"), Path(name)
        there = next((p for p in beside if p.is_file()), None)
        if there is not None and there.suffix != ".py":
            raise ConfigError(f"The stem's file {name} is no Python file (.py).", FORM)
        meant = f" Did you mean {str(there)!r}?" if there else ""
        raise ConfigError(
            f"There is no module {name!r} on Python's path.{meant}",
            f"{FORM} A module must be installed, or on PYTHONPATH.",
        )
    if not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(f"The module {name} has no Python source file.", FORM)
    return Path(os.path.abspath(spec.origin))


def _module_spec(name: str, path: Any) -> Any:
    for finder in sys.meta_path:
        with contextlib.suppress(AttributeError, ImportError):
            spec = finder.find_spec(name, path, None)
            if spec is not None:
                return spec
    return None


def _neighbours(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir() if p.suffix == ".py"]
    except OSError:
        return []


def _read(file: Path) -> bytes:
    """The bytes of a source file. Raises ConfigError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"The stem's file {file} cannot be read: {error.strerror}.") from error
    if len(content) > FILE_LIMIT:
        raise ConfigError(f"The stem's file {file} is larger than {FILE_LIMIT >> 20} MiB.")
    return content


def _sha(content: bytes) -> str:
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


def trust(path: str | Path) -> list[OutsideStemConfig]:
    """Admit the stems from outside that a run folder, a study or a config file names.

    Returns them; none is imported here. What is admitted is the content with the hash that the
    config gives, at the place it names or as the folder's own copy; a config without a hash, as a
    person writes it, is named. Raises ConfigError: nothing there that can be read, or neither place
    has that content.
    """
    path = Path(path)
    files = [path / n for n in _NAMING if (path / n).is_file()] if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} is no run and no study: it has no config.json or plan.json.")
    found = []
    for config in dict.fromkeys(stem for file in files for stem in _stems_in(file)):
        if not config.sha256:
            found.append(name_stem(config))
            continue
        file, _ = _with_hash(config, path if path.is_dir() else path.parent)
        home = file if file == _place(config) else Path(config.source)
        _admit(config.sha256, str(home))
        found.append(config)
    return found


def _stems_in(file: Path) -> list[OutsideStemConfig]:
    """Every stem from outside that a JSON file names, nested or dotted."""
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
    found = []
    for name, value in flat.items():
        if isinstance(value, str) and name.endswith("stem") and ":" in value:
            found.append(OutsideStemConfig(source=value))
        elif isinstance(value, str) and name.endswith("stem.source"):
            sha256 = flat.get(f"{name.removesuffix('source')}sha256") or ""
            found.append(OutsideStemConfig(source=value, sha256=str(sha256)))
    return found


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
    """Where this user's admitted stems stand."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as its specification says; else it would follow the user around
        state = os.path.expanduser("~/.local/state")
    return Path(state) / "vitc" / "trusted_stems.json"


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
        _say(f"{ledger_file()} cannot be written ({error.strerror}): {source} is trusted by this "
             "process only.")  # fmt: skip


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
    _say(f"{file} is damaged: what it trusted is not; what you name is trusted by this process "
         "only. Delete the file to begin another.")  # fmt: skip
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


@cache  # once a process
def _say(text: str) -> None:
    logging.getLogger("vitc").warning(text)


def _refuse_unknown(config: OutsideStemConfig, sha256: str, where: Path | None = None) -> None:
    """The choke point: raise ConfigError unless a file of this hash was admitted."""
    if sha256 in admitted():
        return
    kept = _copies_in(where, sha256) if where else []
    raise ConfigError(
        f"{where or 'This config'} names a stem from outside, {config.what} of {config.place}, "
        f"that you have not named here yourself. Its code was not run.",
        f"Read {kept[0] if kept else 'that file'} first. If you trust it, repeat the command with "
        f"--trust (in Python: vitc.models.outside.trust(path)).",
    )


# -- found again, and kept -------------------------------------------------------------------------


def with_source(model: ModelConfig, folder: str | Path) -> ModelConfig:
    """The model with its stem from outside found again for a run or study in `folder`.

    Its file, if it is still what the config's hash says; else the copy in `folder`, or in the study
    whose trial `folder` is. A model without such a stem comes back as it is. Raises ConfigError: it
    was not admitted (see `trust`), or that content is nowhere.
    """
    stem = _stem(model)
    if stem is None:
        return model
    folder = Path(folder)
    named = folder.is_file() or any((folder / name).is_file() for name in _NAMING)
    said = folder if named else None
    if stem.sha256:
        _refuse_unknown(stem, stem.sha256, said)
    file, content = _with_hash(stem, folder.parent if folder.is_file() else folder)
    sha256 = _sha(content)
    _refuse_unknown(stem, sha256, said)  # where the config has no hash
    found = dataclasses.replace(stem, sha256=sha256)
    if file != _place(stem):
        _say(f"{stem.place} has changed or gone; using the copy {file}.")
        found = dataclasses.replace(found, source=f"{file}:{stem.what}")
    assert isinstance(model, ViTConfig)  # it has a stem
    return dataclasses.replace(model, stem=found)


def found_again(model: ModelConfig, folder: Path) -> ModelConfig:
    """As `with_source`; but what was not admitted, or is nowhere, is left for those who use it."""
    stem = _stem(model)
    if stem is None or stem.sha256 not in admitted():
        return model
    try:
        return with_source(model, folder)
    except ConfigError:
        return model


def copies(model: ModelConfig) -> dict[str, bytes]:
    """Name -> content of what a run folder keeps in `sources/`: the file of a stem from outside.

    Empty for a model without one. Raises ConfigError where the file is not what it was.
    """
    stem = _stem(model)
    if stem is None:
        return {}
    file, content = _with_hash(stem, None)
    sha256 = _sha(content)
    return {_copy_name(file.name, sha256): content}


def _stem(model: ModelConfig) -> OutsideStemConfig | None:
    stem = model.stem if isinstance(model, ViTConfig) else None
    return stem if isinstance(stem, OutsideStemConfig) else None


def _copy_name(name: str, sha256: str) -> str:
    prefix = f"{sha256[:12]}_"
    return prefix + name.removeprefix(prefix)  # a copy of a copy


def _copies_in(folder: Path, sha256: str) -> list[Path]:
    """Files by whose names they could be the copy; what is in them is for the caller to check."""
    files = sorted((folder / SOURCES).glob("*.py"))
    return [file for file in files if file.name.startswith(f"{sha256[:12]}_")]


def _place(config: OutsideStemConfig) -> Path | None:
    """The file that a config names, if there is one."""
    with contextlib.suppress(ConfigError):
        return _find(parse(config.source))
    return None


def _with_hash(config: OutsideStemConfig, folder: Path | None) -> tuple[Path, bytes]:
    """The file with the content that a config means: where it says, or the copy in `folder`."""
    spec = parse(config.source)
    if not config.sha256:
        file = _find(spec)
        return file, _read(file)
    places = [_place(config)]
    if folder is not None:
        folder = Path(os.path.abspath(folder))
        for near in (folder, folder.parent.parent):  # a trial's study is two above it
            places += _copies_in(near, config.sha256)
    for place in places:
        with contextlib.suppress(ConfigError):
            if place is None or not place.is_file():
                continue
            content = _read(place)
            if _sha(content) == config.sha256:
                return place, content
    gone = "has changed since" if places[0] else "is not there"
    copy = f", and {folder} has no intact copy of it" if folder else ""
    raise ConfigError(
        f"{config.place}, which defines the stem {config.what}, {gone} (SHA-256 "
        f"{config.sha256[:12]}... is wanted){copy}.",
        f"Restore it; or name it as it is now, in a new run: --model.stem {config.source}",
    )


# -- built -----------------------------------------------------------------------------------------


def load_stem(config: OutsideStemConfig, in_chans: int, embed_dim: int) -> nn.Module:
    """The stem, built: its class called with in_chans, embed_dim and its settings.

    (B, in_chans, H, W) -> (B, embed_dim, H / reduction, W / reduction). Raises ConfigError: its
    file was not admitted (see `trust`) or is not what the hash says, raises while it is imported,
    or does not give a module with an integer `reduction`.
    """
    if config.sha256:  # before anything is looked for
        _refuse_unknown(config, config.sha256)
    spec = parse(config.source)
    file, content = _with_hash(config, None)
    _refuse_unknown(config, _sha(content))
    cls = getattr(_import(spec, file, content), spec.name, None)
    return make_stem(cls, in_chans, embed_dim, spec.settings, f"{spec.name} of {file}")


def make_stem(
    cls: Any, in_chans: int, embed_dim: int, settings: Mapping[str, Any], said: str = ""
) -> nn.Module:
    """`cls(in_chans=..., embed_dim=..., **settings)`, checked to be a stem. Raises ConfigError."""
    from torch import nn

    said = said or getattr(cls, "__qualname__", repr(cls))
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"The stem {said} is no class of torch.nn.Module.", _STEM_IS)
    _check_arguments(cls, settings, said)
    try:
        stem = cls(in_chans=in_chans, embed_dim=embed_dim, **settings)
    except VitcError:
        raise
    except Exception as error:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        where = _line(error, file or "")
        raise ConfigError(f"The stem {said} cannot be built: {where}{_words(error)}") from error
    reduction = getattr(stem, "reduction", None)
    if type(reduction) is not int or reduction < 1:
        raise ConfigError(
            f"The stem {said} has reduction {reduction!r}; it must be an integer of at least 1: by "
            f"how much it divides height and width.",
            _STEM_IS,
        )
    return stem


_STEM_IS = (
    "A stem is a torch.nn.Module, made with in_chans and embed_dim, that maps (B, in_chans, H, W) "
    "to (B, embed_dim, H / reduction, W / reduction) and has an integer `reduction`."
)


def _check_arguments(cls: type, settings: Mapping[str, Any], said: str) -> None:
    """Refuse settings the class does not know, before it is called."""
    try:
        known = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a class that does not tell
        return
    any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
    names = [n for n, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [n for n in names if n not in ("in_chans", "embed_dim")]
    for name in ("in_chans", "embed_dim"):
        if name not in names and not any_name:
            raise ConfigError(
                f"The stem {said} does not take {name}; it takes {', '.join(names) or 'nothing'}.",
                _STEM_IS,
            )
    for name in settings:
        if name not in names and not any_name:
            raise ConfigError(
                f"The stem {said} has no setting {name!r}.{suggest(name, own)}",
                f"Its settings: {', '.join(own) or 'none'}.",
            )
    missing = [n for n in own if known[n].default is inspect.Parameter.empty and n not in settings]
    if missing:
        raise ConfigError(
            f"The stem {said} needs {', '.join(missing)}, which has no default.",
            f"Give it in brackets: '...:{cls.__name__}({missing[0]}=...)'",
        )


def _import(spec: Spec, file: Path, content: bytes) -> ModuleType:
    """Run admitted bytes as a module, once a process. Raises ConfigError: they raise."""
    sha256 = _sha(content)
    _refuse_unknown(OutsideStemConfig(source=f"{file}:{spec.name}"), sha256)
    at_home = admitted()[sha256] == str(file)
    if at_home and not spec.is_file:
        name = spec.where
        if _MODULES.setdefault(name, sha256) != sha256:
            raise ConfigError(f"{file} has changed since this process imported {name}.",
                              "Start another process.")  # fmt: skip
    else:
        name = f"vitc_stem_{sha256}"
    if name in sys.modules:
        return sys.modules[name]
    from torch import device
    from torch.random import fork_rng

    try:
        # Whatever the file draws or makes at import, the model's own weights are the same, and
        # tensors at module level are real ones though the first model may be a meta one.
        with fork_rng(devices=[]), device("cpu"):
            if name == spec.where:
                return importlib.import_module(name)
            return _run(name, file, content, file.parent if at_home else None)
    except (Exception, SystemExit) as error:
        _MODULES.pop(name, None)
        alone = None if at_home or not isinstance(error, ImportError) else (
            "It was loaded alone, away from the place where it was named, so what it imports from "
            "its own folder or package is not there. Name it anew, or keep a stem in one file."
        )  # fmt: skip
        raise ConfigError(
            f"The stem's file {file} fails when it is imported: {_line(error, str(file))}"
            f"{_words(error)}",
            alone,
        ) from error


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
