"""Where do images come from? Each source is one class in this folder and one entry here."""

from __future__ import annotations

import os
from pathlib import Path

from vitc.data.config import DataConfig
from vitc.data.litter import listed
from vitc.data.sources.arrays import Cifar10, Cifar100, Idx
from vitc.data.sources.base import Source
from vitc.data.sources.custom import CustomSource
from vitc.data.sources.embedded import Fashion, Synthetic
from vitc.data.sources.folder import Folder
from vitc.data.sources.folder import holds_classes as holds_classes
from vitc.data.sources.formula import Formula
from vitc.data.sources.lists import List
from vitc.data.sources.packed import Packed
from vitc.data.sources.parquet import Parquet
from vitc.data.sources.tar import Tar
from vitc.errors import ConfigError, suggest, unknown

# In the order in which they are asked; `Folder` last, since it matches any folder.
_ALL: tuple[Source, ...] = (
    Fashion(),
    Synthetic(),
    Formula(),
    Packed(),
    Cifar10(),
    Cifar100(),
    Idx(),
    Parquet(),
    Tar(),
    List(),
    CustomSource(),
    Folder(),
)
SOURCES = {source.kind: source for source in _ALL}
SUFFIXES = tuple(suffix for source in SOURCES.values() for suffix in source.suffixes)


def guess_source(data: str | Path) -> str:
    """The source of a folder, a file, a pattern of files or a class, by names alone.

    Raises ConfigError: it does not exist (with a suggestion), or is not recognised.
    """
    path = os.path.expanduser(str(data))
    for kind, source in SOURCES.items():
        if source.matches(path):
            return kind
    hint = (
        f"Give a folder, a file or pattern of files ({', '.join(f'*{s}' for s in SUFFIXES)}), a "
        f"class (my.py:Class), or one of: {', '.join(SOURCES)}."
    )
    if os.path.exists(path):
        raise ConfigError(f"{data} is not in a format that can be trained on.", hint)
    parent = Path(path).parent
    near = [str(parent / name) for name in listed(str(parent))]
    raise unknown("data", str(data), [*SOURCES, *near], hint)


def source_problems(config: DataConfig) -> list[str]:
    """What is wrong with a data config for its source; one sentence each."""
    if config.source not in SOURCES:
        near = suggest(config.source, SOURCES)
        known = ", ".join(sorted(SOURCES))
        return [f"data.source {config.source!r} is unknown.{near} Known: {known}."]
    return SOURCES[config.source].problems(config)
