"""Packs of folders, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.pack import Packed, PackOptions, pack


def folder_config(root: Path) -> DataConfig:
    return DataConfig(source="folder", path=str(root))


def packed(root: Path, out: Path, workers: int = 1, **options: Any) -> Packed:
    return pack(folder_config(root), out, PackOptions(**options), workers=workers, overwrite=True)


def opened(path: Path, source: Any = "packed", **settings: Any) -> DataSet:
    return open_data(DataConfig(source=source, path=str(path), **settings))
