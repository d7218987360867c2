"""Batches for training and evaluation, from the device's memory or from loader processes.

Loader processes keep nothing between two batches: the main process says which images and with
which parameters (`sampling`), so a batch is the same whoever makes it and whenever. They are forked
on Linux: ready in milliseconds, sharing the list of files, and a script needs no `__main__` guard;
they run no CUDA and one thread, which is what makes a fork of a threaded process safe. Elsewhere
they are spawned, the only way there.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitc.data.augment import ops
from vitc.data.augment.device import Erased, erased, to_device
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet
from vitc.data.pixels import Fetched, Resident, cut_stored, hold, settle, whole
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
from vitc.data.sources.base import Split
from vitc.data.store import Names
from vitc.errors import BrokenFileError, RunError, VitcError
from vitc.machine import cores

MOST_WORKERS = 8
POLL_SECONDS = 1.0  # how often, while a batch is waited for, the loader processes are looked at
SLOW_SECONDS = 60.0  # for one image, after which it is said which one that is
END_SECONDS = 5.0  # for one image, after which a process that is to end is not waited for
PID, IMAGE, SINCE = range(3)  # columns of what loader processes note
NOTHING = -1
DIED = "DataLoader worker (pid"  # as torch's errors begin, where it is not the worker's own error
Asked = TypeVar("Asked")
Moved = TypeVar("Moved")


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
    held: Resident | str | None = None,
) -> TrainLoader:
    """The steps [start, total) of a run over the training split, counted from its beginning.

    The batches depend on data, config and plan alone: not on start_step, on the number of loader
    processes or, but for which micro-batches come here, on that of the run's processes. `held`:
    what a loader opened before for the same run has, so that no image is held twice. Raises
    ConfigError: fewer images than a batch, or data.resident on is impossible. Iterating raises
    BrokenFileError: a file cannot be decoded; RunError: a loader process died.
    """
    split = data.splits["train"]
    steps = steps_per_epoch(len(split), plan.batch)
    asked = requests(plan, config, split.labels, start_step, total_steps)
    if held is None:
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
        held=held,
        stream=_copy_stream(device, held),
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
    held: Resident | str | None = None
    """The images on the device; or why they are not."""
    workers: int | None = None
    """Loader processes; None: the images are held on the device."""
    stream: torch.cuda.Stream | None = None
    """On which batches are copied; None: where the caller computes."""
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
            micros = _beside(self.stream, functools.partial(self._step, step))
            self.wait_seconds += time.perf_counter() - started
            yield micros

    def _step(self, step: int) -> list[MicroBatch]:
        places = self.plan.places(step, step + 1, self.steps_per_epoch)
        return [self._micro_batch(place) for place in places]

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
    stream = _copy_stream(device, held)
    return EvalLoader(split, config, plan, device, batches, held, workers, note, stream)


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
    stream: torch.cuda.Stream | None = None
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
                yield _beside(self.stream, functools.partial(self._to_device, images, labels))
        finally:
            fetched.close()

    def _to_device(self, images: Tensor, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return to_device(images, self.device), to_device(labels, self.device)

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


def _copy_stream(device: torch.device, held: Resident | str) -> torch.cuda.Stream | None:
    """On CUDA a stream for batches from the host: what it copies, it copies while others compute.
    The host is ahead of the device, so the next batch is moved while this one computes."""
    if device.type != "cuda" or isinstance(held, Resident):
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _beside(stream: torch.cuda.Stream | None, move: Callable[[], Moved]) -> Moved:
    """What `move` puts on the device, by way of `stream`, ready for what the caller asks next."""
    if stream is None:
        return move()
    here = torch.cuda.current_stream(stream.device)
    with torch.cuda.stream(stream):
        moved = move()
    here.wait_stream(stream)
    for tensor in _tensors(moved):
        tensor.record_stream(here)  # else its memory could be given away while it is in use
    return moved


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, MicroBatch | Erased):
        yield from _tensors(list(vars(value).values()))


# -- in the loader processes ----------------------------------------------------------------------


class _Images:
    """The images of a split, one at a time, in a form that processes share without copying.

    Lists of a million Python strings would be copied page by page into every loader process, as
    reading one writes to its reference count; flat arrays are not.
    """

    def __init__(self, split: Split, in_chans: int) -> None:
        self.split = replace(split, names=Names.of(split.names))
        self.in_chans = in_chans
        self.note: Callable[[int], None] = _nothing

    def __len__(self) -> int:
        return len(self.split)

    def name(self, index: int) -> str:
        return self.split.names[index]

    def read(self, index: int) -> NDArray[np.uint8]:
        """uint8 (H, W, C). Raises BrokenFileError."""
        self.note(index)
        return self.split.read(index, self.in_chans)

    def read_cut(
        self, index: int, crop: NDArray[np.float64], size: tuple[int, int], config: DataConfig
    ) -> Tensor:
        """uint8 (C, *size): the training cut that follows from its uniforms. Raises as `read`."""
        self.note(index)
        stored = self.split.stored(index)
        return cut_stored(stored, self.name(index), self.in_chans, crop, size, config)


class _Reader(Dataset[Fetched | VitcError]):
    """Reads the images of one batch. Errors of ours are returned, not raised: torch would turn
    them into others on their way home."""

    def __init__(self, split: Split, config: DataConfig, plan: BatchPlan) -> None:
        self.images, self.config, self.plan = _Images(split, plan.in_chans), config, plan

    def __getitem__(self, asked: Any) -> Fetched | VitcError:
        try:
            return self._fetch(asked)
        except VitcError as error:
            return error
        finally:
            self.images.note(NOTHING)

    def _fetch(self, asked: Any) -> Fetched:
        raise NotImplementedError


def _blank(shape: tuple[int, ...]) -> Tensor:
    """uint8 zeros, as new pages are; in a loader process in memory that the main process sees
    too, so that the batch is not copied when it is sent."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    size = math.prod(shape)
    shared = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


class TrainReader(_Reader):
    """Reads and cuts the images of one micro-batch."""

    def _fetch(self, request: Request) -> Fetched:
        plan, size = self.plan, self.plan.size
        images = _blank((plan.micro, plan.in_chans, *size))
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


class EvalReader(_Reader):
    """Reads the images of one batch, whole; nothing (-1) for a broken file that is skipped."""

    def _fetch(self, indices: NDArray[np.int64]) -> Fetched:
        size = self.plan.size
        images = _blank((len(indices), self.plan.in_chans, *size))
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
    reader: _Reader, asked: Iterable[Asked], workers: int, device: torch.device
) -> Generator[Fetched, None, None]:
    """The reader's answers, in order, made by `workers` processes up to two batches ahead each.

    Raises the reader's errors, and RunError when a process dies. Closing it ends the processes.
    """
    watch = _Watch(reader.images, workers)
    with _quiet_start(), watch.deaths_reported():
        answers = iter(
            DataLoader(
                reader,
                batch_size=None,
                sampler=asked,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=2 if workers else None,
                pin_memory=device.type == "cuda",
                timeout=POLL_SECONDS if workers else 0,
                worker_init_fn=functools.partial(_start_worker, watch.table),
                multiprocessing_context=_start_method() if workers else None,
                generator=torch.Generator(),  # else it draws from the global one: inexact resumes
            )
        )
    end = functools.partial(_end, answers, watch)
    atexit.register(end)  # a worker ignores the SIGTERM by which multiprocessing would end it
    try:
        while True:
            with watch.deaths_reported():
                answer = _next(answers, watch)
            if answer is None:
                return
            if isinstance(answer, VitcError):
                raise answer
            yield answer
    finally:
        if not watch.ended:  # else the program is ending, and what this module imports may be gone
            atexit.unregister(end)
            end()


def _next(answers: Iterator[Any], watch: _Watch) -> Any:
    """The next answer, None after the last; a look at the processes while it is waited for.

    Raises RunError: it cannot come any more.
    """
    while True:
        try:
            return next(answers, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
        watch.say_slow()
        pinning = getattr(answers, "_pin_memory_thread", None)
        if pinning is not None and not pinning.is_alive():
            raise RunError(
                "The thread that takes batches to CUDA ended: a loader process died, or "
                "memory that CUDA can copy from ran out.",
                "Use fewer --data.workers.",
            )


def _end(answers: Iterator[Any], watch: _Watch) -> None:
    """End the processes: as torch does, which waits for the image in hand; not for a stuck one."""
    watch.ended = True
    processes = getattr(answers, "_workers", [])
    for worker, seconds, _ in watch.reading():
        if seconds > END_SECONDS and worker < len(processes):
            processes[worker].kill()
    getattr(answers, "_shutdown_workers", _nothing)()
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join(END_SECONDS)


def _as_it_is(answer: Any) -> Any:
    return answer


def _nothing(*_: object) -> None:
    pass


def _start_method() -> str:
    return "fork" if sys.platform.startswith("linux") else "spawn"


def _start_worker(table: Tensor, worker: int) -> None:
    """Ctrl-C, and a scheduler's SIGTERM to all processes of a job, are the main process's affair:
    it may still want batches before it saves. A worker ends when told to, or when orphaned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # a collection writes to every object it looks at, which a fork shares until then
    row = table[worker].numpy()
    row[PID] = os.getpid()

    def note(index: int) -> None:
        row[SINCE] = time.monotonic_ns()  # first: an image is never said to be slow for another
        row[IMAGE] = index

    info = get_worker_info()
    assert info is not None
    reader = info.dataset
    assert isinstance(reader, _Reader)
    reader.images.note = note


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


@dataclass(eq=False)
class _Watch:
    """What each loader process reads, and since when, in memory that they share with this one.

    table: int64 (workers, 3) of process id, image and monotonic time in ns; a process writes its
    own row alone, before each image, so a look at it needs no lock.
    """

    images: _Images
    workers: int
    table: Tensor = field(init=False)
    said: set[tuple[int, int]] = field(default_factory=set)
    ended: bool = False

    def __post_init__(self) -> None:
        self.table = torch.full((self.workers, 3), NOTHING, dtype=torch.int64)
        if self.workers:
            self.table.share_memory_()  # type: ignore[no-untyped-call]

    def reading(self) -> Iterator[tuple[int, float, str]]:
        """(process, seconds, name) of each image that is in hand."""
        now = time.monotonic_ns()
        for worker, (_, image, since) in enumerate(self.table.tolist()):
            if image != NOTHING:
                yield worker, (now - since) / 1e9, self.images.name(image)

    def say_slow(self) -> None:
        """One warning for an image that takes so long that its disk may be gone."""
        for worker, seconds, name in self.reading():
            key = worker, int(self.table[worker, SINCE])
            if seconds > SLOW_SECONDS and key not in self.said:
                self.said.add(key)
                logging.getLogger("vitc").warning(
                    f"Loader process {worker} has been reading {name!r} for {seconds:.0f} s, and "
                    "the run waits for it: is the disk or network it lies on still there?"
                )

    def dead(self) -> str:
        """Which processes died and what they had in hand; empty: none that had begun."""
        for _ in range(20):  # one that is dying closes its files before it can be seen to be dead
            alive = {process.pid for process in multiprocessing.active_children()}
            dead = [
                (w, row)
                for w, row in enumerate(self.table.tolist())
                if row[PID] != NOTHING and row[PID] not in alive
            ]
            if dead:
                break
            time.sleep(0.05)
        return "; ".join(
            f"process {worker} (pid {pid}) "
            + (f"was reading {self.images.name(image)!r}" if image != NOTHING else "read no image")
            for worker, (pid, image, _) in dead
        )

    @contextmanager
    def deaths_reported(self) -> Iterator[None]:
        """RunError where a worker cannot start or has died; both mostly mean too little memory."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            of_worker = (DIED, "ancdata")  # ancdata: died while handing over a batch
            other = isinstance(error, RuntimeError) and not any(t in str(error) for t in of_worker)
            if not self.workers or other:
                raise
            free = ""
            with suppress(OSError):
                free = f" ({shutil.disk_usage('/dev/shm').free / 1e6:,.0f} MB are free in /dev/shm)"
            dead = self.dead()
            raise RunError(
                f"A loader process died or could not start: {dead}{' - ' * bool(dead)}"
                f"{str(error) or type(error).__name__}.",
                f"Mostly it is memory, or shared memory{free}: use fewer --data.workers than "
                f"{self.workers}, or give the machine or container more (docker run "
                "--shm-size=8g). Always at the same image? vitc data check looks at it.",
            ) from error
