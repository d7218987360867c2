"""Images from a custom source: a class of the user's own (docs/sources.md).

How its class is trusted and imported: `vitc.plugins`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources.folder import SPLIT_WORDS, some
from vitc.data.store import Ints, Names, Stored
from vitc.errors import BrokenFileError, ConfigError, DataError, VitcError
from vitc.plugins.load import build, load
from vitc.plugins.names import SOURCE, Custom, locate, sha


@dataclass(eq=False)
class Outside:
    """A custom source, checked, as a `Store`: splits one after another.

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

    def name(self, place: int) -> str:
        return self.names[place]


def load_outside(config: DataConfig) -> Outside:
    """The source that `config.path` names, made and asked what it has.

    Raises ConfigError: not trusted (see `vitc.plugins.trust`), changed, or no such class;
    DataError: what it has cannot be.
    """
    made = _made(config)
    _, content = locate(_custom(config))
    config = replace(config, path_sha256=sha(content))  # every process makes it from these bytes
    where = str(config.path)
    classes = tuple(_attribute(made, "classes", where))
    if not all(isinstance(c, str) for c in classes) or len(set(classes)) < max(2, len(classes)):
        raise DataError(
            f"{where} has the classes {some(map(str, classes), 5)}; they must be two "
            "or more different texts."
        )
    given = dict(_attribute(made, "labels", where))
    unknown_splits = [name for name in given if name not in SPLIT_WORDS]
    if "train" not in given or unknown_splits:
        raise DataError(
            f"{where} has labels of the splits {some(map(str, given))}; 'train' is "
            "needed, and 'val' and 'test' are known."
        )
    labels = {
        name: _labels(given[name], name, len(classes), where)
        for name in SPLIT_WORDS
        if name in given
    }
    absent = np.setdiff1d(np.arange(len(classes)), labels["train"])
    if len(absent):
        raise DataError(f"{where} has no training image of {some(classes[i] for i in absent)}.")
    named = dict(getattr(made, "names", {}))
    names: list[str] = []
    for split, of_split in labels.items():
        mine = (
            [str(n) for n in named[split]]
            if split in named
            else [f"{split}/{i}" for i in range(len(of_split))]
        )
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
        raise ConfigError(
            f"{where} has no {name if value is None else 'read(split, index)'}.", SOURCE.contract
        )
    return value


def _labels(values: Any, split: str, classes: int, where: str) -> Ints:
    labels = np.asarray(values)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where} has {split} labels that are no list of whole numbers (one label an image)."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{where} has {split} labels outside 0 ... {classes - 1}.")
    return labels.astype(np.int64)


def _made(config: DataConfig) -> Any:
    """The object; the file of its class has the hash of the config, and is trusted."""
    cls, settings, label = load(_custom(config))
    return build(SOURCE, cls, {}, settings, label)


def _custom(config: DataConfig) -> Custom:
    return Custom(SOURCE, str(config.path), config.path_sha256)
