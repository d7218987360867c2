"""How are training images decoded once, not in every epoch? Shrunk pixels in a file of the cache.

With `data.cache_side` a training image is what its source has, its shorter side shrunk to at most
that many pixels. The pixels are written once, as a raw pack, below the user's cache folder
(`$XDG_CACHE_HOME/vitc/pixels`), named by the images' content, and mapped into memory by every later
run on the same images. Where that file cannot be written, images are shrunk each time they are
read: the same pixels, more slowly.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet
from vitc.data.pack import PackOptions, pack_found, versions
from vitc.data.shrink import shrunk
from vitc.data.sources.base import Found, Split
from vitc.data.sources.index import cache_folder
from vitc.data.sources.packed import PackedStore, open_pack
from vitc.data.store import Ints, Pixels
from vitc.errors import BrokenFileError, ConfigError, DataError, VitcError
from vitc.machine import cores, one_thread, processor_seconds
from vitc.wording import size

FREE_SHARE = 0.5  # of the free disk space that the pixels may take
TIMED = 128  # images, at most, to learn what decoding one takes
WIDE = 1.5  # width over height, about, of a photo: to estimate the space


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A store of training images as they are trained on; `split` is where they come from.

    packed: the file of their pixels, and rows: int64 (n,), the place of each there, -1 for a broken
    image; or None.
    """

    split: Split
    side: int
    in_chans: int
    packed: PackedStore | None
    rows: Ints
    scaled: bool

    def read(self, place: int) -> Pixels:
        if self.packed is not None and self.rows[place] >= 0:
            pixels = self.packed.read(int(self.rows[place]))
            assert not isinstance(pixels, bytes)
            return pixels
        name, stored = self.split.names[place], self.split.stored(place)
        return shrunk(stored, self.in_chans, name, self.side, self.scaled)


def training_split(
    data: DataSet, config: DataConfig, in_chans: int, make: bool = True
) -> tuple[Split, str]:
    """The images to train on, and a note on where their pixels are kept (empty: nowhere).

    Without `make` those are used that an earlier run has kept.
    """
    split = data.splits["train"]
    side = config.cache_side
    if side is None or split.pixels is not None or isinstance(split.store, Shrunk):
        return split, ""
    packed, rows = None, np.arange(len(split))
    key = f"{data.fingerprint} {data.listing} {side} {in_chans} {versions('raw')}"
    scaled = config.cache_decode == "scaled"
    key += " scaled" * scaled
    file = cache_folder() / "pixels" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.vitc"
    try:
        packed = _opened(file)
        if packed is None and not make:
            return split, ""
        packed = packed or _written(file, split, data, config, side, in_chans)
        rows = _rows(split, packed)
        note = f"Pixels of shorter side {side} are kept in {file} ({size(file.stat().st_size)})."
    except (VitcError, OSError) as error:
        note = f"Images are decoded in every epoch: {error}"
    store = Shrunk(split, side, in_chans, packed, rows, scaled)
    return replace(split, store=store, places=None), note


def cache_bytes(images: int, in_chans: int, side: int) -> int:
    """About what the kept pixels of so many images take."""
    return round(images * in_chans * side * side * WIDE)


def decoding_seconds(
    split: Split,
    config: DataConfig,
    in_chans: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Until one more image of the split is in the cache: a few are decoded, evenly spread, for a
    second. 0: they are not kept there. Many processes need no less of `processor_seconds`."""
    side, scaled = config.cache_side, config.cache_decode == "scaled"
    if side is None or split.pixels is not None:
        return 0.0
    places = np.unique(np.linspace(0, len(split) - 1, TIMED).astype(np.int64)).tolist()
    before, timed = clock(), 0
    with one_thread():
        for n, place in enumerate((places[0], *places)):
            if n == 1:  # the first imports what decoding needs, and does not count
                before = clock()
            elif n > 1 and clock() - before > 1:
                break
            with contextlib.suppress(BrokenFileError):
                shrunk(split.stored(place), in_chans, split.names[place], side, scaled)
            timed = n
        each = (clock() - before) / timed
    return each if clock is processor_seconds else each / _workers(config)


def _workers(config: DataConfig) -> int:
    return cores() if config.workers is None else max(1, config.workers)


def _opened(file: Path) -> PackedStore | None:
    """The pixels kept there, if they are and are whole."""
    try:
        return PackedStore(open_pack(file))
    except (ConfigError, DataError):
        return None


def _written(
    file: Path, split: Split, data: DataSet, config: DataConfig, side: int, in_chans: int
) -> PackedStore:
    """Decode all images of the split, once, leaving out broken ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    need = cache_bytes(len(split), in_chans, side)
    free = shutil.disk_usage(file.parent).free
    if need > FREE_SHARE * free:
        raise DataError(
            f"their pixels would take {size(need)}, of {size(free)} free in {file.parent}."
        )
    found = Found(data.classes, {"train": split}, ())
    options = PackOptions(
        short_side=side,
        raw=True,
        channels=in_chans,
        bad_files="skip",
        scaled=config.cache_decode == "scaled",
    )
    overwrite = file.exists()
    pack_found(found, file, options, workers=_workers(config), overwrite=overwrite, wait=True)
    return PackedStore(open_pack(file))


def _rows(split: Split, packed: PackedStore) -> Ints:
    """Where each image of the split is among those kept, in the same order; -1: it is not."""
    rows = np.full(len(split), -1, np.int64)
    kept = iter(enumerate(packed.pack.names))
    row, name = next(kept)
    for place, wanted in enumerate(split.names):
        if wanted == name:
            rows[place] = row
            row, name = next(kept, (-1, ""))
    return rows
