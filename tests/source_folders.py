"""Small folders of images, and how they are opened: for the tests of sources."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.errors import DataError, VitcError

Tree = dict[str, int]
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0}  # nothing held out


def png(value: int) -> bytes:
    """A small image file, another one for each value."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png(0)


def plant(root: Path, tree: Tree, suffix: str = ".png") -> Path:
    """`{"train/cat": 3}` -> train/cat/000.png … 002.png, none of the same size."""
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i:03d}{suffix}").write_bytes(PNG + b"\0" * i)
    return root


def opened(root: Path, **settings: Any) -> DataSet:
    return open_data(DataConfig(source="folder", path=str(root), **settings))


def counts(data: DataSet) -> dict[str, list[int]]:
    """Images of each class in each split."""
    classes = len(data.classes)
    return {k: np.bincount(s.labels, minlength=classes).tolist() for k, s in data.splits.items()}


def notes(data: DataSet) -> str:
    return "\n".join(data.notes)


def refusal(root: Path, kind: type[VitcError] = DataError, **settings: Any) -> str:
    with pytest.raises(kind) as error:
        opened(root, **settings)
    assert error.value.hint
    return str(error.value)


def write_idx(file: Path, array: NDArray[np.uint8], head: bytes | None = None) -> None:
    """An IDX file, gzipped where its name ends in .gz."""
    head = head or struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    data = head + array.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
