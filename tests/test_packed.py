"""The format of packs: forged, damaged, changed and very large ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import batches
from tests.packs import opened, packed
from vitc.data.config import DataConfig
from vitc.data.sources.packed import HEADER, open_pack, verify
from vitc.data.store import Names
from vitc.data.workers import Reader
from vitc.errors import BrokenFileError, ConfigError, DataError

Photos = Callable[..., Path]


# -- forged and damaged ----------------------------------------------------------------------------


@pytest.fixture
def good(photo_folder: Photos, tmp_path: Path) -> bytes:
    packed(photo_folder(2, 3, size=(20, 16)), tmp_path / "good.vitc")
    return (tmp_path / "good.vitc").read_bytes()


def sealed(raw: bytearray) -> bytes:
    """With the index checksum made right, as a forger would."""
    _, _, _, payload, _, _, _ = HEADER.unpack(raw[:64])
    raw[-40:-8] = hashlib.sha256(raw[:64] + raw[64 + payload : -40]).digest()
    return bytes(raw)


def forged(good: bytes, column: int, place: int, value: int) -> bytes:
    """With one number of the index changed; columns as in docs/pack-format.md."""
    raw = bytearray(good)
    _, _, _, payload, n, _, _ = HEADER.unpack(good[:64])
    struct.pack_into("<I", raw, 64 + payload + 4 * (column * n + place), value)
    return sealed(raw)


def with_about(good: bytes, **changes: Any) -> bytes:
    _, _, _, payload, n, names, about = HEADER.unpack(good[:64])
    start = 64 + payload + 24 * n + names
    values = json.loads(good[start : start + about]) | changes
    said = json.dumps(values).encode()
    head = HEADER.pack(*HEADER.unpack(good[:64])[:-1], len(said))
    return sealed(bytearray(head + good[64:start] + said + good[-40:]))


def refusal(file: Path, raw: bytes) -> str:
    file.write_bytes(raw)
    with pytest.raises(DataError) as error:
        open_pack(file)
    with pytest.raises(BrokenFileError):
        verify(file)
    return str(error.value)


def test_lengths_offsets_and_labels_that_cannot_be_are_refused(good: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.vitc"
    for column in range(6):
        if column == 1:
            continue  # a checksum may be any number; verify compares it
        for value in (2**32 - 1, 2**31, 0) if column != 2 else (2, 2**32 - 1):
            assert refusal(file, forged(good, column, 1, value))
    raw = bytearray(forged(good, 0, 0, 2**32 - 2))
    assert "records do not fill it" in refusal(file, bytes(raw))


def test_lengths_that_wrap_around_are_refused(good: bytes, tmp_path: Path) -> None:
    """Six lengths whose sum is right only in 32 bits."""
    raw = forged(forged(good, 0, 0, 2**31), 0, 1, 2**31)
    assert refusal(tmp_path / "x.vitc", raw)


@pytest.mark.parametrize("field", [3, 4, 5, 6])
@pytest.mark.parametrize("value", [2**64 - 1, 2**40, 2**32, 1, 0])
def test_giant_counts_are_refused_before_memory_is_asked_for(
    good: bytes, tmp_path: Path, field: int, value: int
) -> None:
    head = list(HEADER.unpack(good[:64]))
    head[field] = value
    assert refusal(tmp_path / "x.vitc", sealed_or_not(HEADER.pack(*head) + good[64:]))


def sealed_or_not(raw: bytes) -> bytes:
    return raw[:-40] + hashlib.sha256(raw[:64]).digest() + raw[-8:]


def test_a_giant_sparse_file_takes_no_memory(good: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.vitc"
    n = 2**33
    file.write_bytes(HEADER.pack(good[:8], 1, 0, 2**30, n, 0, 2))
    os.truncate(file, 64 + 2**30 + 24 * n + 2 + 40)
    with pytest.raises(DataError, match="at most"):
        open_pack(file)


def test_anything_else_and_any_other_version_is_refused(good: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.vitc"
    for raw in (b"", good[:63], b"PK" + good[2:], good.replace(b"\r\n", b"\n")):
        assert "does not start like one" in refusal(file, raw)
    newer = list(HEADER.unpack(good[:64]))
    newer[1] = 2
    assert "version 2" in refusal(file, HEADER.pack(*newer) + good[64:])
    assert "never finished" in refusal(file, HEADER.pack(good[:8], 1, 0, 0, 0, 0, 0) + good[64:])
    with pytest.raises(ConfigError, match="There is no packed file"):
        open_pack(tmp_path / "gone.vitc")


def test_a_cut_or_longer_file_and_every_changed_byte_is_noticed(
    good: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "x.vitc"
    for raw in (good[:-1], good[: len(good) // 2], good + b"\0"):
        assert refusal(file, raw)
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, len(good), 60).tolist(), *range(48, 64), len(good) - 1]:
        raw = bytearray(good)
        raw[at] ^= 1 << (at % 8)
        file.write_bytes(raw)
        with pytest.raises(BrokenFileError):
            verify(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a"]},
        {"classes": ["a", "a"]},
        {"classes": "ab"},
        {"classes": [1, 2]},
        {"counts": {"train": 5}},
        {"counts": {"train": -1, "val": 7}},
        {"counts": {"val": 6}},
        {"counts": {"train": True, "val": 5}},
        {"counts": [6]},
        {"encoding": "zip"},
        {"encoding": "raw"},
        {"channels": 7},
        {"lossless": 1},
        {"origin": None},
        {"made": {"a": 1}},
        {"notes": "x"},
        {"short_side": 1.5},
        {"surprise": 1},
    ],
    ids=str,
)
def test_what_a_pack_says_of_itself_is_checked(
    good: bytes, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert "invalid metadata" in refusal(tmp_path / "x.vitc", with_about(good, **changes))


def test_json_that_nests_too_deep_is_refused(good: bytes, tmp_path: Path) -> None:
    _, _, _, payload, n, names, _ = HEADER.unpack(good[:64])
    said = b"[" * 200_000
    head = HEADER.pack(*HEADER.unpack(good[:64])[:-1], len(said))
    raw = head + good[64 : 64 + payload + 24 * n + names] + said + good[-40:]
    assert refusal(tmp_path / "x.vitc", sealed(bytearray(raw)))


def test_a_pack_that_changes_while_it_is_used_is_an_error(
    photo_folder: Photos, tmp_path: Path
) -> None:
    root, out = photo_folder(2, 4), tmp_path / "x.vitc"
    for options in ({}, {"raw": True}):
        packed(root, out, **options)
        split = opened(out).splits["train"]
        os.utime(out, (1, 1))
        with pytest.raises(BrokenFileError, match="has changed"):
            split.stored(0)


# -- a million -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_of_many_images_opens_quickly_and_its_memory_is_flat(tmp_path: Path) -> None:
    """200,000 records; a process that has only the index takes 100 bytes an image, not 1,000."""
    n = 200_000
    path = many_images(tmp_path / "many.vitc", n)
    pack = open_pack(path)
    held = sum(
        a.nbytes
        for a in (
            pack.names.blob,
            pack.names.ends,
            pack.labels,
            pack.ends,
            pack.crc32,
            pack.height,
            pack.width,
        )
    )
    assert held < 100 * n
    images = Reader(opened(path).splits["train"], DataConfig(), batches.plan(size=(32, 32))).split
    assert len(images) == round(n * 0.7)
    assert images.read(0, 3).shape == (4, 4, 3)


def many_images(path: Path, n: int) -> Path:
    """A pack of n times one small image, written through the format's own writer."""
    from vitc.data.sources.packed import About, write_index

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 200, 30)).save(buffer, "PNG")
    one = buffer.getvalue()
    entries = np.tile(np.array([[len(one), zlib.crc32(one), 4, 4]], np.uint32), (n, 1))
    names = Names.of(f"class_{i % 1000:04d}/image_{i:08d}.png" for i in range(n))
    classes = tuple(f"class_{i:04d}" for i in range(1000))
    about = About(classes, {"train": n}, "source", "folder", True)
    with path.open("w+b") as f:
        f.write(bytes(HEADER.size))
        for _ in range(0, n, 1000):
            f.write(one * 1000)
        write_index(f, about, names, np.arange(n, dtype=np.int64) % 1000, entries)
    return path
