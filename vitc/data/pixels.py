"""A split held as one uint8 tensor on the device: no loader processes, no decoding in the run.

Small images make a loader the bottleneck; here a batch is one gather. `hold` decides whether a
split can and should be held, and says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment.device import mirror, resample, shift, to_device
from vitc.data.augment.ops_torch import change
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet
from vitc.data.decode import Box, crop_resize, eval_image, read_cut, read_image, to_channels
from vitc.data.sampling import (
    BatchPlan,
    Request,
    random_resized_boxes,
    shift_offsets,
    stand_ins,
)
from vitc.data.sources.base import Split
from vitc.data.store import Stored
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.machine import cores, memory
from vitc.wording import size

SMALL_SIDE = 64  # pixels; files up to this size are worth decoding once, whatever the model's size
MANY_FILES = 200_000  # about half a minute of decoding on one core; more are read as they come


class Fetched(NamedTuple):
    """The images of one batch: uint8 (b, C, H, W); int64 (b,) which they are, -1 where there is
    none; the names of broken files that were met and skipped."""

    images: Tensor
    indices: NDArray[np.int64]
    skipped: tuple[str, ...]

    def pin_memory(self) -> Fetched:
        """With page-locked images, from which CUDA copies while the host goes on."""
        return self._replace(images=self.images.pin_memory())


# -- one image at a time, as the loader's workers do it -------------------------------------------


def frame(image: NDArray[np.uint8], size: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    """What a random resized crop cuts from: the image (H, W, C), with fit pad on a black ground
    of the aspect ratio of `size`."""
    if fit != "pad":
        return image
    h, w, c = image.shape
    high = max(h, round(w * size[0] / size[1]))
    wide = max(w, round(h * size[1] / size[0]))
    if (high, wide) == (h, w):
        return image
    ground = np.zeros((high, wide, c), np.uint8)
    top, left = (high - h) // 2, (wide - w) // 2
    ground[top : top + h, left : left + w] = image
    return ground


def whole(image: NDArray[np.uint8], size: tuple[int, int], config: DataConfig) -> Tensor:
    """uint8 (C, H, W): the image as evaluation sees it."""
    return eval_image(image, size, config.fit, config.eval_crop)


def cut(
    image: NDArray[np.uint8], crop: NDArray[np.float64], size: tuple[int, int], config: DataConfig
) -> Tensor:
    """uint8 (C, H, W): the training cut of an image (H, W, C) that follows from its uniforms.

    crop none: as evaluation. shift: that, moved. random_resized: a box of `frame`; with fit
    squash, area and aspect ratio are measured after the distortion.
    """
    augment = config.augment
    if augment.crop == "random_resized":
        image = frame(image, size, config.fit)
        squash = size if config.fit == "squash" else None
        h, w = image.shape[:2]
        box = random_resized_boxes(crop[None], h, w, augment, squash)[0].tolist()
        return crop_resize(image, (box[0], box[1], box[2], box[3]), size)
    out = whole(image, size, config)
    if augment.crop == "none":
        return out
    offsets = torch.from_numpy(shift_offsets(crop[None], augment.shift_pixels))
    return shift(out[None], offsets, augment.shift_pixels)[0]


def cut_stored(
    stored: Stored,
    name: str,
    in_chans: int,
    crop: NDArray[np.float64],
    size: tuple[int, int],
    config: DataConfig,
) -> Tensor:
    """`cut` of an image as its source has it; of a large JPEG, only as much is decoded as a random
    resized crop needs. Raises BrokenFileError."""
    if not isinstance(stored, bytes):
        return cut(to_channels(stored, in_chans), crop, size, config)
    if config.augment.crop != "random_resized" or config.fit == "pad":
        return cut(read_image(stored, in_chans, name), crop, size, config)
    squash = size if config.fit == "squash" else None

    def box(height: int, width: int) -> Box:
        found = random_resized_boxes(crop[None], height, width, config.augment, squash)[0].tolist()
        return found[0], found[1], found[2], found[3]

    return read_cut(stored, in_chans, name, box, size)


# -- all images at once ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Resident:
    """A split on the device: images uint8 (n, C, H, W), and bool (n,) which files were broken."""

    images: Tensor
    broken: NDArray[np.bool_]
    split: Split

    def fetch(
        self, requests: Iterator[Request], config: DataConfig, plan: BatchPlan
    ) -> Generator[Fetched, None, None]:
        """The micro-batches asked for, cut as `cut` does and with their operations applied."""
        for request in requests:
            indices, skipped = self._replace_broken(request, plan)
            images = self.images.index_select(0, to_device(indices, self.images.device))
            images = self._cut(images, request.crop, config, plan.size)
            if request.flip is not None:
                images = mirror(images, to_device(request.flip, images.device))
            if request.chain is not None:
                images = change(images, request.chain)
            yield Fetched(images, indices, skipped)

    def whole(self, indices: NDArray[np.int64]) -> Fetched:
        """The images of consecutive indices as evaluation sees them; -1 at the end: black."""
        real = indices[indices >= 0]
        first = int(real[0]) if len(real) else 0
        images = self.images[first : first + len(real)]
        if len(real) < len(indices):
            images = torch.cat(
                [images, images.new_zeros(len(indices) - len(real), *images.shape[1:])]
            )
        found = np.where((indices >= 0) & ~self.broken[indices], indices, -1)
        skipped = tuple(self.split.names[i] for i in real[self.broken[real]].tolist())
        return Fetched(images, found, skipped)

    def _cut(
        self, images: Tensor, crop: NDArray[np.float64], config: DataConfig, size: tuple[int, int]
    ) -> Tensor:
        augment = config.augment
        if augment.crop == "none":
            return images
        if augment.crop == "shift":
            offsets = shift_offsets(crop, augment.shift_pixels)
            return shift(images, to_device(offsets, images.device), augment.shift_pixels)
        squash = size if config.fit == "squash" else None
        boxes = random_resized_boxes(crop, images.shape[2], images.shape[3], augment, squash)
        return resample(images, to_device(boxes, images.device), size)

    def _replace_broken(
        self, request: Request, plan: BatchPlan
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        if not self.broken[request.indices].any():
            return request.indices, ()
        skipped: list[str] = []
        positions = request.place.positions(plan.micro).tolist()
        chosen = [
            settle(request, position, index, plan, len(self.broken), self._usable(skipped))
            for position, index in zip(positions, request.indices.tolist(), strict=True)
        ]
        return np.array(chosen, np.int64), tuple(skipped)

    def _usable(self, skipped: list[str]) -> Callable[[int], bool]:
        def usable(index: int) -> bool:
            if self.broken[index]:
                skipped.append(self.split.names[index])
            return not self.broken[index]

        return usable


def settle(
    request: Request,
    position: int,
    index: int,
    plan: BatchPlan,
    n: int,
    usable: Callable[[int], bool],
) -> int:
    """The image that a position takes: its own, or the first stand-in that is usable."""
    for candidate in stand_ins(plan.seed_order, request.place.epoch, position, index, n):
        if usable(candidate):
            return candidate
    raise DataError(
        "Eleven images drawn in a row are broken files; data.bad_files skip is for a few.",
        "Repair the data set, or remove the broken files from it.",
    )


# -- whether to hold, and holding -----------------------------------------------------------------


class _Unfit(Exception):
    """Why a split is not held."""


def hold(
    split: Split,
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    training: bool,
) -> Resident | str:
    """The split on the device, or the reason why it is not.

    Images are held as evaluation sees them, or, for a random resized crop in training, as they
    come; then they must all have one size. With data.resident auto, the whole data set (all
    splits at this one's size of an image) must fit a quarter of the device's memory, and files
    must be small images; with on, it must fit the memory. Raises ConfigError when `on` is
    impossible, BrokenFileError for a file that cannot be decoded unless bad_files is skip.
    """
    if config.resident == "off":
        return "data.resident is off"
    native = training and config.augment.crop == "random_resized"
    try:
        if split.pixels is None:
            _check_files(split, config, plan, native)
        shape = _frame_shape(split, config, plan, native)
        _check_memory(data, shape, config, device)
        held = _hold_pixels if split.pixels is not None else _hold_files
        images, broken = held(split, config, plan, native, shape)
    except _Unfit as reason:
        if config.resident == "on":
            raise ConfigError(
                f"data.resident on is not possible: {reason}.",
                "Use --data.resident auto: loader processes then read the images.",
            ) from None
        return str(reason)
    return Resident(images.to(device), broken, split)


def _prepared(
    image: NDArray[np.uint8], config: DataConfig, plan: BatchPlan, native: bool
) -> Tensor:
    """uint8 (C, H, W): one image as it is held."""
    if native:
        return torch.from_numpy(frame(image, plan.size, config.fit)).permute(2, 0, 1)
    return whole(image, plan.size, config)


def _frame_shape(
    split: Split, config: DataConfig, plan: BatchPlan, native: bool
) -> tuple[int, int, int]:
    if not native:
        return plan.in_chans, *plan.size
    image = split.pixels[0] if split.pixels is not None else next(_sample(split, plan))
    c, h, w = _prepared(image, config, plan, native).shape
    return c, h, w


def _check_memory(
    data: DataSet, shape: tuple[int, int, int], config: DataConfig, device: torch.device
) -> None:
    n = sum(len(s) for s in data.splits.values())
    need, have = n * int(np.prod(shape)), device_memory(device)
    part, limit = ("", have) if config.resident == "on" else ("a quarter of ", have // 4)
    if need > limit:
        raise _Unfit(
            f"{n:,} images of {' x '.join(map(str, shape))} take {size(need)}, more than {part}"
            f"the {size(have)} of {device.type}"
        )


def _check_files(split: Split, config: DataConfig, plan: BatchPlan, native: bool) -> None:
    """A cheap look at a few files before all are decoded; the first large one ends it."""
    if config.resident == "auto" and len(split) > MANY_FILES:
        raise _Unfit(f"{len(split):,} files are many to decode before the first step")
    shapes = set()
    for image in _sample(split, plan):
        _check_side(image, config)
        shapes.add(_prepared(image, config, plan, native).shape)
    if not shapes:
        raise _Unfit("the files looked at first are all broken")
    if len(shapes) > 1:
        raise _Unfit("the images have different sizes")


def _check_side(image: NDArray[np.uint8], config: DataConfig) -> None:
    if config.resident == "auto" and max(image.shape[:2]) > SMALL_SIDE:
        raise _Unfit(f"the files are images of more than {SMALL_SIDE} pixels a side")


def _sample(split: Split, plan: BatchPlan, count: int = 16) -> Iterator[NDArray[np.uint8]]:
    """Up to `count` readable images, evenly spread over the files."""
    for i in np.unique(np.linspace(0, len(split) - 1, count).astype(int)).tolist():
        try:
            yield split.read(i, plan.in_chans)
        except BrokenFileError:
            continue  # met again, and dealt with, when all are read


def _hold_pixels(
    split: Split, config: DataConfig, plan: BatchPlan, native: bool, shape: tuple[int, int, int]
) -> tuple[Tensor, NDArray[np.bool_]]:
    pixels = split.pixels
    assert pixels is not None
    broken = np.zeros(len(split), np.bool_)
    if pixels.shape[1:] == (*shape[1:], shape[0]):  # of the size already: nothing changes them
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), broken
    images = torch.empty((len(split), *shape), dtype=torch.uint8)
    for i, image in enumerate(pixels):
        images[i] = _prepared(image, config, plan, native)
    return images, broken


def _hold_files(
    split: Split, config: DataConfig, plan: BatchPlan, native: bool, shape: tuple[int, int, int]
) -> tuple[Tensor, NDArray[np.bool_]]:
    """All files decoded, by one thread a core: the decoders let go of the interpreter."""
    images = torch.zeros((len(split), *shape), dtype=torch.uint8)
    broken = np.zeros(len(split), np.bool_)

    def read(rows: range) -> None:
        for i in rows:
            try:
                image = split.read(i, plan.in_chans)
            except BrokenFileError:
                if config.bad_files == "stop":
                    raise
                broken[i] = True
                continue
            _check_side(image, config)
            ready = _prepared(image, config, plan, native)
            if ready.shape != shape:
                raise _Unfit("the images have different sizes")
            images[i] = ready

    pool = ThreadPoolExecutor(cores())
    try:
        chunks = [range(i, min(i + 256, len(split))) for i in range(0, len(split), 256)]
        for _ in pool.map(read, chunks):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images, broken


# -- the machine ----------------------------------------------------------------------------------


def device_memory(device: torch.device) -> int:
    """Bytes of memory of the device; of the host, this process's share of what it allows."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return memory()
