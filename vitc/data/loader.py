"""Batches for training and evaluation, from the device's memory or from loader processes.

Loader processes keep nothing between two batches: the main process says which images and with
which parameters (`sampling`), so a batch is the same whoever makes it and whenever. They are forked
on Linux: ready in milliseconds, sharing the list of files, and a script needs no `__main__` guard;
they run no CUDA and one thread, which is what makes a fork of a threaded process safe. Elsewhere
they are spawned, the only way there.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitc.data import ops
from vitc.data.augment import Erased, erased, to_device
from vitc.data.config import DataConfig
from vitc.data.resident import Fetched, Resident, cores, cut_stored, hold, settle, whole
from vitc.data.sampling import (
    BatchPlan,
    Mix,
    Place,
    Request,
    SampleMix,
    draw_drop_path,
    draw_erasing,
    draw_flip,
    draw_lighting,
    draw_mix,
    eval_batches,
    requests,
    steps_per_epoch,
)
from vitc.data.sources import DataSet, Files, Split
from vitc.data.store import Names
from vitc.errors import BrokenFileError, RunError, VitcError

MOST_WORKERS = 8
Asked = TypeVar("Asked")


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What the forward and backward pass of one micro-batch needs, all of it on the device.

    images: uint8 (b, C, H, W); labels: int64 (b,); flip: bool (b,), or None where the images are
    mirrored already, before a policy; lighting: float32 (b, C) or None, see `augment.finish`;
    erased: rectangles, or None; mix: how the images are mixed among themselves; drop_path: float32
    (2 * depth, b) or None; skipped: names of broken files that other images stand in for.
    """

    images: Tensor
    labels: Tensor
    flip: Tensor | None
    lighting: Tensor | None
    erased: Erased | None
    mix: Mix | SampleMix
    drop_path: Tensor | None
    skipped: tuple[str, ...]


# -- for the run ----------------------------------------------------------------------------------


def open_train(
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    start_step: int,
    total_steps: int,
) -> TrainLoader:
    """The steps [start, total) of a run over the training split, counted from its beginning.

    The batches depend on data, config and plan alone: not on start_step, on the number of loader
    processes or, but for which micro-batches come here, on that of the run's processes. Raises
    ConfigError: fewer images than a batch, or data.resident on is impossible. Iterating raises
    BrokenFileError: a file cannot be decoded; RunError: a loader process died.
    """
    split = data.splits["train"]
    steps = steps_per_epoch(len(split), plan.batch)
    asked = requests(plan, config, split.labels, start_step, total_steps)
    held = hold(split, data, config, plan, device, training=True)
    workers: int | None
    if isinstance(held, Resident):
        workers = None
        fetched, note = held.fetch(asked, config, plan), _held_note(held, device)
    else:
        workers = _worker_count(config)
        fetched = _serve(TrainReader(split, config, plan), asked, workers, device)
        note = _served_note(workers, held)
    return TrainLoader(
        split=split,
        config=config,
        plan=plan,
        device=device,
        steps=range(start_step, total_steps),
        steps_per_epoch=steps,
        fetched=fetched,
        note=note,
        workers=workers,
    )


@dataclass(eq=False)
class TrainLoader:
    """Iterates steps: each is the list of this process's micro-batches, in global order.

    A context manager, to be iterated once: leaving it ends the loader processes. `note` says in
    one sentence where the images come from; `wait_seconds` is the time spent so far on waiting for
    batches, or on making them where there are no loader processes.
    """

    split: Split
    config: DataConfig
    plan: BatchPlan
    device: torch.device
    steps: range
    steps_per_epoch: int
    fetched: Generator[Fetched, None, None]
    note: str
    workers: int | None = None
    """Loader processes; None: the images are held on the device."""
    wait_seconds: float = 0.0

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.fetched.close()

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for step in self.steps:
            started = time.perf_counter()
            micros = [self._micro_batch(place) for place in self._places(step)]
            self.wait_seconds += time.perf_counter() - started
            yield micros

    def _places(self, step: int) -> Iterator[Place]:
        return self.plan.places(step, step + 1, self.steps_per_epoch)

    def _micro_batch(self, place: Place) -> MicroBatch:
        images, indices, skipped = next(self.fetched)
        augment, device = self.config.augment, self.device
        flip = None if augment.alters else draw_flip(self.plan, augment, place)
        lighting = draw_lighting(self.plan, augment, place)
        erasing = draw_erasing(self.plan, augment, place)
        drop_path = draw_drop_path(self.plan, place)
        return MicroBatch(
            images=to_device(images, device),
            labels=to_device(self.split.labels[indices], device),
            flip=None if flip is None else to_device(flip, device),
            lighting=None if lighting is None else to_device(lighting, device),
            erased=None if erasing is None else erased(erasing, augment.erase_fill, device),
            mix=draw_mix(self.plan, augment, place),
            drop_path=None if drop_path is None else to_device(drop_path, device),
            skipped=skipped,
        )


def open_eval(
    split: Split,
    data: DataSet,
    config: DataConfig,
    plan: BatchPlan,
    device: torch.device,
    batch: int,
) -> EvalLoader:
    """This process's part of a split, in order, in batches of `batch` images or fewer.

    Raises as `open_train`. Open it once where the split is evaluated again and again: images that
    are held on the device are prepared here.
    """
    held = hold(split, data, config, plan, device, training=False)
    workers = 0 if isinstance(held, Resident) else _worker_count(config)
    note = _held_note(held, device) if isinstance(held, Resident) else _served_note(workers, held)
    batches = eval_batches(len(split), batch, plan.rank, plan.world)
    return EvalLoader(split, config, plan, device, batches, held, workers, note)


@dataclass(eq=False)
class EvalLoader:
    """Iterates, as often as wanted, (images uint8 (b, C, H, W), labels int64 (b,)) on the device.

    All batches have one size; the label is -1 where the last one is filled up, and for a broken
    file that is skipped: `skipped` has the names of those of the latest pass.
    """

    split: Split
    config: DataConfig
    plan: BatchPlan
    device: torch.device
    batches: list[NDArray[np.int64]]
    held: Resident | str
    workers: int
    note: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.skipped = ()
        fetched = self._held() if isinstance(self.held, Resident) else self._served()
        try:
            for images, indices, skipped in fetched:
                self.skipped += skipped
                labels = np.where(indices >= 0, self.split.labels[indices], -1)
                yield to_device(images, self.device), to_device(labels, self.device)
        finally:
            fetched.close()

    def _served(self) -> Generator[Fetched, None, None]:
        reader = EvalReader(self.split, self.config, self.plan)
        return _serve(reader, self.batches, self.workers, self.device)

    def _held(self) -> Generator[Fetched, None, None]:
        assert isinstance(self.held, Resident)
        for asked in self.batches:
            yield self.held.whole(asked)


def _held_note(held: Resident, device: torch.device) -> str:
    n, *shape = held.images.shape
    size = " x ".join(map(str, shape))
    return f"{n:,} images of {size} are held on {device.type} ({held.images.nbytes / 1e6:.1f} MB)."


def _served_note(workers: int, reason: str) -> str:
    who = f"{workers} loader process{'es' * (workers > 1)}" if workers else "the main process"
    return f"Images are read by {who} as they are needed: {reason}."


# -- in the loader processes ----------------------------------------------------------------------


class _Images:
    """The images of a split, one at a time, in a form that processes share without copying.

    Lists of a million Python strings would be copied page by page into every loader process, as
    reading one writes to its reference count; flat arrays are not.
    """

    def __init__(self, split: Split, in_chans: int) -> None:
        files = split.files
        if files is not None and not isinstance(files, Files):
            files = Files(Path(), [os.fspath(file) for file in files])
        self.split = replace(split, names=Names.of(split.names), files=files)
        self.in_chans = in_chans

    def __len__(self) -> int:
        return len(self.split)

    def name(self, index: int) -> str:
        return self.split.names[index]

    def read(self, index: int) -> NDArray[np.uint8]:
        """uint8 (H, W, C). Raises BrokenFileError."""
        return self.split.read(index, self.in_chans)

    def read_cut(
        self, index: int, crop: NDArray[np.float64], size: tuple[int, int], config: DataConfig
    ) -> Tensor:
        """uint8 (C, *size): the training cut that follows from its uniforms. Raises as `read`."""
        stored = self.split.stored(index)
        return cut_stored(stored, self.name(index), self.in_chans, crop, size, config)


class TrainReader(Dataset[Fetched | VitcError]):
    """Reads and cuts the images of one micro-batch. Errors of ours are returned, not raised:
    torch would turn them into others on their way home."""

    def __init__(self, split: Split, config: DataConfig, plan: BatchPlan) -> None:
        self.images, self.config, self.plan = _Images(split, plan.in_chans), config, plan

    def __getitem__(self, request: Request) -> Fetched | VitcError:
        try:
            return self._fetch(request)
        except VitcError as error:
            return error

    def _fetch(self, request: Request) -> Fetched:
        plan, size = self.plan, self.plan.size
        images = torch.empty((plan.micro, plan.in_chans, *size), dtype=torch.uint8)
        chosen = request.indices.copy()
        skipped: list[str] = []
        image, row = torch.empty(0, dtype=torch.uint8), 0

        def usable(index: int) -> bool:
            nonlocal image
            try:
                image = self.images.read_cut(index, request.crop[row], size, self.config)
            except BrokenFileError:
                if self.config.bad_files == "stop":
                    raise
                skipped.append(self.images.name(index))
                return False
            return True

        for row, position in enumerate(request.place.positions(plan.micro).tolist()):
            index = int(chosen[row])
            chosen[row] = settle(request, position, index, plan, len(self.images), usable)
            images.numpy()[row] = _altered(image, request, row)
        return Fetched(images, chosen, tuple(skipped))


def _altered(image: Tensor, request: Request, row: int) -> NDArray[np.uint8]:
    """uint8 (C, H, W), mirrored and changed as the request says of its row."""
    if request.flip is not None and request.flip[row]:
        image = image.flip(-1)
    if request.chain is None:
        return image.numpy()
    codes, args = request.chain.codes[row], request.chain.args[row]
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    changed = ops.apply(pixels, codes.tolist(), args.tolist(), request.chain.bilinear)
    return changed.transpose(2, 0, 1)


class EvalReader(Dataset[Fetched | VitcError]):
    """Reads the images of one batch, whole; nothing (-1) for a broken file that is skipped."""

    def __init__(self, split: Split, config: DataConfig, plan: BatchPlan) -> None:
        self.images, self.config, self.plan = _Images(split, plan.in_chans), config, plan

    def __getitem__(self, indices: NDArray[np.int64]) -> Fetched | VitcError:
        try:
            return self._fetch(indices)
        except VitcError as error:
            return error

    def _fetch(self, indices: NDArray[np.int64]) -> Fetched:
        size = self.plan.size
        images = torch.zeros((len(indices), self.plan.in_chans, *size), dtype=torch.uint8)
        found = indices.copy()
        skipped: list[str] = []
        for row in np.flatnonzero(indices >= 0).tolist():
            try:
                images[row] = whole(self.images.read(int(indices[row])), size, self.config)
            except BrokenFileError:
                if self.config.bad_files == "stop":
                    raise
                skipped.append(self.images.name(int(indices[row])))
                found[row] = -1
        return Fetched(images, found, tuple(skipped))


# -- starting, watching and ending them -----------------------------------------------------------


def _worker_count(config: DataConfig) -> int:
    return min(MOST_WORKERS, cores()) if config.workers is None else config.workers


def _serve(
    reader: Dataset[Fetched | VitcError],
    asked: Iterable[Asked],
    workers: int,
    device: torch.device,
) -> Generator[Fetched, None, None]:
    """The reader's answers, in order, made by `workers` processes up to two batches ahead each.

    Raises the reader's errors, and RunError when a process dies. Closing it ends the processes.
    """
    with _quiet_start(), _deaths_reported(workers):
        answers = iter(
            DataLoader(
                reader,
                batch_size=None,
                sampler=asked,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=2 if workers else None,
                pin_memory=device.type == "cuda",
                worker_init_fn=_start_worker,
                multiprocessing_context=_start_method() if workers else None,
                generator=torch.Generator(),  # else it draws from the global one: inexact resumes
            )
        )
    end = getattr(answers, "_shutdown_workers", _nothing)
    atexit.register(end)  # a worker ignores the SIGTERM by which multiprocessing would end it
    try:
        while True:
            with _deaths_reported(workers):
                answer = next(answers, None)
            if answer is None:
                return
            if isinstance(answer, VitcError):
                raise answer
            yield answer
    finally:
        atexit.unregister(end)
        end()


def _as_it_is(answer: Any) -> Any:
    return answer


def _nothing() -> None:
    pass


def _start_method() -> str:
    return "fork" if sys.platform.startswith("linux") else "spawn"


def _start_worker(_: int) -> None:
    """Ctrl-C, and a scheduler's SIGTERM to all processes of a job, are the main process's affair:
    it may still want batches before it saves. A worker ends when told to, or when orphaned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start workers without torch's advice on their number, which is the user's choice, without
    Python's on forking with threads (see the top), and without torch's SIGCHLD handler: that raises
    in the middle of whatever the main process does, where asking for the next batch will tell."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        try:
            yield
        finally:
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)


@contextmanager
def _deaths_reported(workers: int) -> Iterator[None]:
    """RunError where a worker cannot start or has died; both mostly mean too little memory."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        of_worker = ("DataLoader worker", "ancdata")  # ancdata: died while handing over a batch
        other = isinstance(error, RuntimeError) and not any(t in str(error) for t in of_worker)
        if not workers or other:
            raise
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage('/dev/shm').free / 1e6:,.0f} MB are free in /dev/shm)"
        raise RunError(
            f"A loader process died or could not start: {str(error) or type(error).__name__}.",
            f"Mostly it is memory, or shared memory{free}: use fewer --data.workers than "
            f"{workers}, or give the machine or container more (docker run --shm-size=8g).",
        ) from error
