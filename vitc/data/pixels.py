"""Which images does a batch need, and how are they provided when the whole split is resident?

A `Request` names the images of a micro-batch and their random parameters. `Resident` keeps the
split as one tensor on the device, where a batch is one gather (loader processes would be the
bottleneck for small images); `workers.Served` decodes images as they are needed. Both answer with
the same pixels; `hold` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data import sampling
from vitc.data.augment.crop import crop_batch, draw_crop, eval_image, frame, frame_size
from vitc.data.augment.device import draw_flip, mirror, to_device
from vitc.data.augment.ops import Chain, change
from vitc.data.augment.policies import draw_chain
from vitc.data.broken import MAX_PIXELS
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet
from vitc.data.sampling import BatchPlan, Place
from vitc.data.sources.base import Split
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.machine import cores, memory
from vitc.wording import size

SMALL_SIDE = 64  # pixels; files up to this size are worth decoding once
MANY_FILES = 200_000  # about half a minute of decoding on one core; more are read as needed


# -- asking for images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """The images of a micro-batch: int64 (micro,) indices, the uniforms float64 (micro, draws) of
    their crops, then bool (micro,) which are mirrored and the operations on them. `flip` is None
    if there are no operations: then mirroring is left to `augment.device.finish`."""

    place: Place
    indices: NDArray[np.int64]
    crop: NDArray[np.float64]
    flip: NDArray[np.bool_] | None
    chain: Chain | None


def requests(
    plan: BatchPlan,
    config: DataConfig,
    labels: NDArray[np.int64],
    start_step: int,
    total_steps: int,
) -> Iterator[Request]:
    """This process's micro-batches of the steps [start, total) of a run, in order."""
    augment = config.augment
    epoch, order = -1, labels
    steps = sampling.steps_per_epoch(len(labels), plan.batch)
    for place in plan.places(start_step, total_steps, steps):
        if place.epoch != epoch:
            epoch = place.epoch
            order = sampling.epoch_indices(plan.seed_order, epoch, labels, config.balance)
        indices = order[sampling.order_places(plan, place, augment.repeats)]
        operations = draw_chain(plan, augment, place)
        flip = None if operations is None else draw_flip(plan, augment, place)
        yield Request(place, indices, draw_crop(plan, augment, place), flip, operations)


class Fetched(NamedTuple):
    """The images of one batch: uint8 (b, C, H, W); int64 (b,) their indices, -1 for padding; the
    names of broken files that were skipped."""

    images: Tensor
    indices: NDArray[np.int64]
    skipped: tuple[str, ...]

    def pin_memory(self) -> Fetched:
        """With page-locked images, which CUDA copies without blocking the host."""
        return self._replace(images=self.images.pin_memory())


def candidates(request: Request, row: int, plan: BatchPlan, n: int) -> Iterator[int]:
    """The image of a row of a request, then stand-ins (of n) while they are broken.

    Raises DataError when none is left.
    """
    position = request.place.index * plan.micro + row
    index = int(request.indices[row])
    yield from sampling.stand_ins(plan.seed_order, request.place.epoch, position, index, n)
    raise DataError(
        "Eleven images drawn in a row are broken; data.bad_files skip is meant for a few.",
        "Repair or remove the broken files.",
    )


# -- a resident split -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Resident:
    """A split on the device: images uint8 (n, C, H, W), and bool (n,) which files were broken."""

    images: Tensor
    broken: NDArray[np.bool_]
    split: Split
    config: DataConfig
    plan: BatchPlan

    @property
    def workers(self) -> None:
        """Loader processes: none."""

    @property
    def note(self) -> str:
        """Where the images are, in one sentence for the log."""
        n, *shape = self.images.shape
        what = f"{n:,} images of {' x '.join(map(str, shape))}"
        megabytes = self.images.nbytes / 1e6
        return f"{what} are resident on {self.images.device.type} ({megabytes:.1f} MB)."

    def train(self, asked: Iterable[Request]) -> Generator[Fetched, None, None]:
        """The micro-batches requested, cropped and with their operations applied."""
        for request in asked:
            indices, skipped = self._settled(request)
            images = self.images.index_select(0, to_device(indices, self.images.device))
            images = crop_batch(images, request.crop, self.plan.size, self.config)
            if request.flip is not None:
                images = mirror(images, to_device(request.flip, images.device))
            if request.chain is not None:
                images = change(images, request.chain)
            yield Fetched(images, indices, skipped)

    def evaluate(self, asked: Iterable[NDArray[np.int64]]) -> Generator[Fetched, None, None]:
        """Images as evaluation sees them, of consecutive indices; black for -1, at the end only."""
        for indices in asked:
            real = indices[indices >= 0]
            first = int(real[0]) if len(real) else 0
            images = self.images[first : first + len(real)]
            if len(real) < len(indices):
                black = images.new_zeros(len(indices) - len(real), *images.shape[1:])
                images = torch.cat([images, black])
            found = np.where((indices >= 0) & ~self.broken[indices], indices, -1)
            skipped = tuple(self.split.names[i] for i in real[self.broken[real]].tolist())
            yield Fetched(images, found, skipped)

    def _settled(self, request: Request) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The images to use, and the names of broken files among those requested."""
        if not self.broken[request.indices].any():
            return request.indices, ()
        chosen, skipped = request.indices.copy(), []
        for row in range(len(chosen)):
            for index in candidates(request, row, self.plan, len(self.broken)):
                chosen[row] = index
                if not self.broken[index]:
                    break
                skipped.append(self.split.names[index])
        return chosen, tuple(skipped)


class _Unfit(Exception):
    """Why a split is not made resident."""


def hold(
    split: Split,
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    training: bool,
    often: bool = False,
) -> Resident | str:
    """The split on the device, or the reason why it is not.

    Images are kept as evaluation sees them, or, for a random resized crop in training, at their
    own size, which must be the same for all. With data.resident auto, the whole data set must fit
    a quarter of the device's memory, and files must be small images unless they are evaluated
    `often`; with on, it must fit the memory. Raises ConfigError: `on` is impossible;
    BrokenFileError, unless bad_files is skip.
    """
    if config.resident == "off":
        return "data.resident is off"
    native = training and config.augment.crop == "random_resized"

    def prepared(image: NDArray[np.uint8]) -> Tensor:
        """uint8 (C, H, W): one image as it is kept."""
        large = split.pixels is None and max(image.shape[:2]) > SMALL_SIDE
        if large and config.resident == "auto" and (training or not often):
            raise _Unfit(f"the files are images of more than {SMALL_SIDE} pixels a side")
        if native:
            height, width = image.shape[:2]
            high, wide = frame_size(height, width, plan.size, config.fit)
            if high * wide > max(MAX_PIXELS, height * width):
                own = f"{width:,} x {height:,}"
                raise _Unfit(f"an image of {own} pixels is padded to {wide:,} x {high:,}")
            framed = np.require(frame(image, plan.size, config.fit), requirements="W")  # of a map
            return torch.from_numpy(framed).permute(2, 0, 1)
        return eval_image(image, plan.size, config.fit, config.eval_crop)

    try:
        if split.pixels is None:
            _check_files(split, config, plan, prepared)
        shape: tuple[int, ...] = (plan.in_chans, *plan.size)
        if native:
            shape = tuple(prepared(next(_sample(split, plan))).shape)
        _check_memory(data, shape, config, device)
        images, broken = _hold(split, config, plan, shape, prepared)
    except _Unfit as reason:
        if config.resident == "on":
            raise ConfigError(
                f"data.resident on is not possible: {reason}.",
                "Use --data.resident auto: loader processes then read the images.",
            ) from None
        return str(reason)
    return Resident(images.to(device), broken, split, config, plan)


Prepare = Callable[[NDArray[np.uint8]], Tensor]


def _check_memory(
    data: DataSet, shape: tuple[int, ...], config: DataConfig, device: torch.device
) -> None:
    n = sum(len(s) for s in data.splits.values())
    need, have = n * int(np.prod(shape)), device_memory(device)
    part, limit = ("", have) if config.resident == "on" else ("a quarter of ", have // 4)
    if need > limit:
        raise _Unfit(
            f"{n:,} images of {' x '.join(map(str, shape))} take {size(need)}, more than {part}"
            f"the {size(have)} of {device.type}"
        )


def _check_files(split: Split, config: DataConfig, plan: BatchPlan, prepared: Prepare) -> None:
    """Check a few files before all are decoded."""
    if config.resident == "auto" and len(split) > MANY_FILES:
        raise _Unfit(f"{len(split):,} files are too many to decode before the first step")
    shapes = {prepared(image).shape for image in _sample(split, plan)}
    if not shapes:
        raise _Unfit("all files of a first sample are broken")
    if len(shapes) > 1:
        raise _Unfit("the images have different sizes")


def _sample(split: Split, plan: BatchPlan) -> Iterator[NDArray[np.uint8]]:
    """Up to 16 readable images, evenly spaced over the files."""
    for i in np.unique(np.linspace(0, len(split) - 1, 16).astype(int)).tolist():
        try:
            yield split.read(i, plan.in_chans)
        except BrokenFileError:
            continue  # handled when all files are read


def _hold(
    split: Split, config: DataConfig, plan: BatchPlan, shape: tuple[int, ...], prepared: Prepare
) -> tuple[Tensor, NDArray[np.bool_]]:
    """All images, in one thread a core: the decoders release the interpreter's lock."""
    broken = np.zeros(len(split), np.bool_)
    if split.pixels is not None and split.pixels.shape[1:] == (*shape[1:], shape[0]):
        return torch.from_numpy(split.pixels).permute(0, 3, 1, 2).contiguous(), broken
    images = torch.zeros((len(split), *shape), dtype=torch.uint8)

    def read(rows: range) -> None:
        for i in rows:
            try:
                image = split.read(i, plan.in_chans)
            except BrokenFileError:
                if config.bad_files == "stop":
                    raise
                broken[i] = True
                continue
            ready = prepared(image)
            if ready.shape != shape:
                raise _Unfit("the images have different sizes")
            images[i] = ready

    pool = ThreadPoolExecutor(cores())
    part = max(1, min(256, len(split) // (4 * cores())))
    try:
        list(pool.map(read, [range(len(split))[i : i + part] for i in range(0, len(split), part)]))
    finally:
        pool.shutdown(cancel_futures=True)
    return images, broken


def device_memory(device: torch.device) -> int:
    """Bytes of memory of the device; on the host, this process's share."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return memory()
