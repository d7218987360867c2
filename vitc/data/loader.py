"""How do the images of a split become the batches that training and evaluation take?

Pixels come from the device (`pixels.Resident`) or from loader processes (`workers.Served`); here
they get their labels and the parameters of what the device does to them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment import device as on_device
from vitc.data.augment.device import Erased, to_device
from vitc.data.augment.mixing import Mix, SampleMix, draw_mix
from vitc.data.cache import training_split
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet
from vitc.data.pixels import Fetched, Resident, hold, requests
from vitc.data.sampling import BatchPlan, Place, draw_drop_path, eval_batches, steps_per_epoch
from vitc.data.sources.base import Split
from vitc.data.workers import Served

Provider = Resident | Served  # where the pixels of a split come from
Moved = TypeVar("Moved")


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one micro-batch needs for its forward and backward pass, on the device.

    images: uint8 (b, C, H, W); labels: int64 (b,); flip: bool (b,), None if the images are mirrored
    already, before a policy; lighting: float32 (b, C) or None, see `augment.device.finish`;
    drop_path: float32 (2 * depth, b) or None; skipped: names of broken files that were replaced.
    """

    images: Tensor
    labels: Tensor
    flip: Tensor | None
    lighting: Tensor | None
    erased: Erased | None
    mix: Mix | SampleMix
    drop_path: Tensor | None
    skipped: tuple[str, ...]


def _provider(
    split: Split,
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    batch: int | None = None,
    often: bool = False,
) -> Provider:
    """The split resident on the device, or read by loader processes. `batch`: the images that are
    evaluated at a time; None: for training."""
    held = hold(split, data, config, plan, device, batch is None, often)
    if isinstance(held, Resident):
        return held
    return Served(
        split, config, plan, device, held, plan.micro if batch is None else min(batch, len(split))
    )


# -- training -------------------------------------------------------------------------------------


def open_train(
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    start_step: int,
    total_steps: int,
    provider: Provider | None = None,
) -> TrainLoader:
    """The steps [start, total) of a run over the training split.

    The batches depend on data, config and plan alone, not on start_step or the number of loader
    processes. `provider`: of a loader opened earlier for the same run, so that no image is held
    twice. Raises ConfigError: fewer images than a batch, or data.resident on is impossible.
    Iterating raises BrokenFileError: a file cannot be decoded; RunError: a loader process died.
    """
    split, kept = training_split(data, config, plan.in_chans)
    steps = steps_per_epoch(len(split), plan.batch)
    asked = requests(plan, config, split.labels, start_step, total_steps)
    provider = provider or _provider(split, data, config, plan, device)
    return TrainLoader(
        split=split,
        config=config,
        plan=plan,
        device=device,
        steps=range(start_step, total_steps),
        steps_per_epoch=steps,
        provider=provider,
        note=f"{provider.note} {kept}".strip(),
        fetched=provider.train(asked),
        stream=_copy_stream(device, provider),
    )


@dataclass(eq=False)
class TrainLoader:
    """Iterates steps: each is the list of this process's micro-batches, in global order.

    A context manager, to be iterated once; leaving it ends the loader processes. `wait_seconds`:
    spent so far waiting for batches, or making them where there are no loader processes.
    """

    split: Split
    config: DataConfig
    plan: BatchPlan
    device: torch.device
    steps: range
    steps_per_epoch: int
    provider: Provider
    note: str
    """Where the images come from, in a sentence or two."""
    fetched: Generator[Fetched, None, None]
    stream: torch.cuda.Stream | None = None
    """On which batches are copied; None: where the caller computes."""
    wait_seconds: float = 0.0

    @property
    def workers(self) -> int | None:
        """Loader processes; None: the images are resident on the device."""
        return self.provider.workers

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.fetched.close()

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for step in self.steps:
            started = time.perf_counter()
            micros = _on_stream(self.stream, functools.partial(self._step, step))
            self.wait_seconds += time.perf_counter() - started
            yield micros

    def _step(self, step: int) -> list[MicroBatch]:
        places = self.plan.places(step, step + 1, self.steps_per_epoch)
        return [self._micro_batch(place) for place in places]

    def _micro_batch(self, place: Place) -> MicroBatch:
        images, indices, skipped = next(self.fetched)
        augment, device = self.config.augment, self.device
        draw = self.plan, augment, place

        def moved(values: NDArray[Any] | None) -> Tensor | None:
            return None if values is None else to_device(values, device)

        return MicroBatch(
            images=to_device(images, device),
            labels=to_device(self.split.labels[indices], device),
            flip=None if augment.alters else moved(on_device.draw_flip(*draw)),
            lighting=moved(on_device.draw_lighting(*draw)),
            erased=on_device.erased(on_device.draw_erasing(*draw), augment.erase_fill, device),
            mix=draw_mix(*draw),
            drop_path=moved(draw_drop_path(self.plan, place)),
            skipped=skipped,
        )


# -- evaluation -----------------------------------------------------------------------------------


def open_eval(
    split: Split,
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    batch: int,
    often: bool = False,
) -> EvalLoader:
    """This process's share of a split, in order, in batches of at most `batch` images.

    `often`: it will be iterated many times, so that large files are worth decoding once. Resident
    images are prepared here, once for all evaluations. Raises as `open_train`.
    """
    provider = _provider(split, data, config, plan, device, batch, often)
    batches = eval_batches(len(split), batch, plan.rank, plan.world)
    return EvalLoader(split, device, batches, provider, _copy_stream(device, provider))


@dataclass(eq=False)
class EvalLoader:
    """Iterates, as often as wanted, (images uint8 (b, C, H, W), labels int64 (b,)) on the device.

    All batches have one size; the label is -1 for padding, and for a broken file that is skipped:
    `skipped` has the names of those of the latest pass.
    """

    split: Split
    device: torch.device
    batches: list[NDArray[np.int64]]
    provider: Provider
    stream: torch.cuda.Stream | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.skipped = ()
        fetched = self.provider.evaluate(self.batches)
        try:
            for images, indices, skipped in fetched:
                self.skipped += skipped
                labels = np.where(indices >= 0, self.split.labels[indices], -1)
                yield _on_stream(self.stream, functools.partial(self._to_device, images, labels))
        finally:
            fetched.close()

    def _to_device(self, images: Tensor, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return to_device(images, self.device), to_device(labels, self.device)


# -- copying while the device computes ------------------------------------------------------------


def _copy_stream(device: torch.device, provider: Provider) -> torch.cuda.Stream | None:
    """On CUDA a stream of its own for batches from the host: the host is ahead of the device, so
    the next batch is copied during this one's step."""
    if device.type != "cuda" or provider.workers is None:
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _on_stream(stream: torch.cuda.Stream | None, move: Callable[[], Moved]) -> Moved:
    """What `move` puts on the device through `stream`, ready for the caller's next operation."""
    if stream is None:
        return move()
    here = torch.cuda.current_stream(stream.device)
    with torch.cuda.stream(stream):
        moved = move()
    here.wait_stream(stream)
    for tensor in _tensors(moved):
        tensor.record_stream(here)  # else its memory could be reused while it is in use
    return moved


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, MicroBatch | Erased):
        yield from _tensors(list(vars(value).values()))
