"""How is a custom source of images (docs/sources.md) named, made and read?

How its class is trusted and imported: `vitc.plugins`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources.base import Found, Source, Split, some
from vitc.data.split_words import SPLITS
from vitc.data.store import Ints, Names, Stored, sample_of
from vitc.errors import BrokenFileError, ConfigError, DataError, VitcError
from vitc.plugins.consent import name_class
from vitc.plugins.load import build, load
from vitc.plugins.names import SOURCE, Custom, class_parts, is_path, locate, sha
from vitc.wording import short

MOST_READ = 20_000  # images that are read once to identify them; reading one may take any time


class CustomSource(Source):
    """A class of the user's own, `FILE.py:Class` or `package.module:Class`."""

    kind, origin = "custom", "outside"  # its name in earlier versions
    title = "a custom source"
    path = "a class: --data.path path/to/file.py:Class or package.module:Class"
    settings = frozenset({"group", "path_sha256"})

    def matches(self, path: str) -> bool:
        return not os.path.isdir(path) and class_parts(path) is not None

    def absolute(self, path: str) -> str:
        parts = class_parts(path)
        if parts is None:
            return super().absolute(path)
        where, name, call = parts
        return f"{super().absolute(where) if is_path(where) else where}:{name}{call}"

    def named(self, config: DataConfig) -> DataConfig:
        """With the hash of the class's file filled in; the file is trusted, and read but not run.

        Raises ConfigError: no such file, module or class (with suggestions), settings that are not
        literals.
        """
        if config.path is None:
            return config
        one = name_class(SOURCE, config.path)
        return replace(config, path=one.source, path_sha256=one.sha256)

    def read(self, config: DataConfig) -> Found:
        """Raises ConfigError: not trusted (see `vitc.plugins.trust`), changed, or no such class;
        DataError: what it holds is invalid."""
        made, where = _made(config), str(config.path)
        sha256 = sha(locate(_custom(config))[1])
        config = replace(config, path_sha256=sha256)  # every process makes it from these bytes
        classes = _classes(made, where)
        labels = _labels(made, classes, where)
        names = _names(made, labels, where)
        store = CustomStore(config, labels, names, made)
        splits, first = {}, 0
        for name, of_split in labels.items():
            places = np.arange(first, first + len(of_split), dtype=np.int64)
            first += len(of_split)
            unknown = np.full(len(of_split), -1, np.int64)
            splits[name] = Split(of_split, names.take(places), None, store, places, unknown)
        mark = str(getattr(made, "fingerprint", "")) or f"{Path(where).name} {sha256}"
        return Found(classes, splits, content=mark.encode())


@dataclass(eq=False)
class CustomStore:
    """The images of a custom source, split after split, as a `Store`.

    labels: int64 (n,) of each split.
    """

    config: DataConfig
    labels: dict[str, Ints]
    names: Names
    _made: Any = field(default=None, repr=False)
    _process: int = field(default_factory=os.getpid, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_lock": threading.Lock()})

    def sample(self, place: int, limit: int) -> bytes:
        """Empty where the source has a fingerprint of its own, or more images than MOST_READ."""
        with self._lock:  # whether the source can be read by several threads is not known
            declared = getattr(self._made, "fingerprint", None)
            if declared or len(self.names) > MOST_READ:
                return b""
            return sample_of(self.read(place), limit)

    def read(self, place: int) -> Stored:
        """Raises BrokenFileError: the source raises, or gives no image."""
        name = self.names[place]
        index = place
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
            raise BrokenFileError(
                f"{name!r} cannot be read: {type(e).__name__}: {e}.",
                f"It comes from {self.config.path}.",
            ) from e
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


def _classes(made: Any, where: str) -> tuple[str, ...]:
    classes = _listed(_attribute(made, "classes", where))
    if classes is None:
        raise DataError(
            f"{where} has the classes {short(repr(made.classes), 80)}, which is no list; they must "
            "be two or more different strings.",
            'For example: classes = ("healthy", "ill")',
        )
    if not all(isinstance(c, str) for c in classes) or len(set(classes)) < max(2, len(classes)):
        raise DataError(
            f"{where} has the classes {some(map(str, classes), 5)}; they must be two "
            "or more different strings."
        )
    return tuple(classes)


def _labels(made: Any, classes: Sequence[str], where: str) -> dict[str, Ints]:
    """int64 (n,) of each split, in the order of SPLITS."""
    given = _of_splits(_attribute(made, "labels", where), "labels", "[0, 1, ...]", where)
    if "train" not in given or not given.keys() <= set(SPLITS):
        raise DataError(
            f"{where} has labels of the splits {some(map(str, given))}; 'train' is "
            "required, 'val' and 'test' are optional."
        )
    found = {}
    for split in [name for name in SPLITS if name in given]:
        try:
            labels = np.asarray(given[split])
        except ValueError:  # lists of different lengths
            labels = np.zeros((0, 0))
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{where} has {split} labels that are not a list of integers (one per image)."
            )
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"{where} has {split} labels outside 0 ... {len(classes) - 1}.")
        found[split] = labels.astype(np.int64)
    absent = np.setdiff1d(np.arange(len(classes)), found["train"])
    if len(absent):
        raise DataError(f"{where} has no training image of {some(classes[i] for i in absent)}.")
    return found


def _names(made: Any, labels: dict[str, Ints], where: str) -> Names:
    """One for each image, split after split: the source's own, or `train/0` and so on."""
    given = getattr(made, "names", None)
    named = {} if given is None else _of_splits(given, "names", '["scan 1", ...]', where)
    names: list[str] = []
    for split, of_split in labels.items():
        listed = _listed(named.get(split, ()))
        if listed is None:
            raise DataError(
                f"{where} has the {split} names {short(repr(named[split]), 80)}, which is no list.",
                f"One for each of its {len(of_split):,} images.",
            )
        own = [str(name) for name in listed]
        if split in named and len(own) != len(of_split):
            raise DataError(f"{where} has {len(of_split):,} {split} labels and {len(own):,} names.")
        names += own or [f"{split}/{i}" for i in range(len(of_split))]
    return Names.of(names)


def _of_splits(value: Any, name: str, example: str, where: str) -> dict[Any, Any]:
    """A dict of the splits, as `labels` and `names` are. Raises DataError: something else."""
    if callable(getattr(value, "keys", None)):
        with contextlib.suppress(TypeError, ValueError):
            return dict(value)
    raise DataError(
        f"{where} has {name} that are a {type(value).__name__}, {short(repr(value), 60)}; they "
        "must be a dict with a list for each split.",
        f'For example: {name} = {{"train": {example}}}; "val" and "test" are optional.',
    )


def _listed(value: Any) -> list[Any] | None:
    """The items of a list or the like; None: it is something else, such as a number or a string."""
    if isinstance(value, str | bytes):
        return None
    try:
        return list(value)
    except TypeError:
        return None


def _attribute(made: Any, name: str, where: str) -> Any:
    value = getattr(made, name, None)
    if value is None or not callable(getattr(made, "read", None)):
        raise ConfigError(
            f"{where} has no {name if value is None else 'read(split, index)'}.", SOURCE.contract
        )
    return value


def _made(config: DataConfig) -> Any:
    """The object; the file of its class has the hash of the config, and is trusted."""
    cls, settings, label = load(_custom(config))
    return build(SOURCE, cls, {}, settings, label)


def _custom(config: DataConfig) -> Custom:
    return Custom(SOURCE, str(config.path), config.path_sha256)
