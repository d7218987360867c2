"""How do loader processes read images for a run: started, watched and ended?

They keep no state between batches: the main process chooses the images and their parameters
(`Request`), so a batch is the same whichever process makes it. They are forked on Linux: ready in
milliseconds, sharing the list of files, without a `__main__` guard in scripts; they run no CUDA and
one thread, which makes forking a threaded process safe. Elsewhere they are spawned.
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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitc.data.augment.crop import eval_image, train_image
from vitc.data.augment.ops import apply
from vitc.data.config import DataConfig
from vitc.data.pixels import Fetched, Request, candidates
from vitc.data.sampling import BatchPlan
from vitc.data.sources.base import Split
from vitc.data.store import Names
from vitc.errors import BrokenFileError, RunError, VitcError
from vitc.machine import SHARED, STOP_SIGNALS, cores, free_shared_memory
from vitc.wording import counted, size

MOST_WORKERS = 8
POLL_SECONDS = 1.0  # between two looks at the loader processes while waiting for a batch
SLOW_SECONDS = 60.0  # for one image, before a warning names it
END_SECONDS = 5.0  # for one image, after which ending a process does not wait for it
PID, IMAGE, SINCE = range(3)  # columns of what loader processes note
NOTHING = -1
DIED = "DataLoader worker (pid"  # how torch's errors begin, unless they are the worker's own


@dataclass(eq=False)
class Served:
    """The images of a split, decoded as they are needed by `workers` processes (0: by this one)."""

    split: Split
    config: DataConfig
    plan: BatchPlan
    device: torch.device
    reason: str
    """Why the split is not resident."""
    images: int
    """Of a batch, at most."""

    @property
    def workers(self) -> int:
        return self._fitting[0]

    @functools.cached_property
    def _fitting(self) -> tuple[int, int]:
        """(processes, batches that each is ahead): as many as shared memory has room for."""
        chosen = self.config.workers
        wanted = min(MOST_WORKERS, cores()) if chosen is None else chosen
        free = free_shared_memory()
        batch = self.images * self.plan.in_chans * math.prod(self.plan.size)
        found = fitting(wanted, batch, free)
        if found[0] < wanted and free is not None:
            used = counted(found[0], "loader process", "loader processes")
            logging.getLogger("vitc").warning(
                f"Images are read by {used if found[0] else 'the main process'}, not by {wanted}: "
                f"{SHARED} has {size(free)} free, and a batch takes {size(batch)}. More processes "
                "with a larger one: docker run --shm-size=2g, or in Kubernetes an emptyDir of "
                f"medium Memory at {SHARED}."
            )
        return found

    @property
    def note(self) -> str:
        n = self.workers
        by = f"{n} loader process{'es' * (n > 1)}" if n else "the main process"
        return f"Images are read by {by} as they are needed: {self.reason}."

    def train(self, asked: Iterable[Any]) -> Generator[Fetched, None, None]:
        """The batches, in order, up to two ahead in each process, one where memory is short.

        Raises the reader's errors, and RunError: a process died. Closing it ends the processes.
        """
        workers, ahead = self._fitting
        reader = Reader(self.split, self.config, self.plan)
        method = "fork" if sys.platform.startswith("linux") else "spawn"
        watch = _Watch(reader, workers)
        with _quiet_start(), watch.deaths_reported():
            answers = iter(
                DataLoader(
                    reader,
                    batch_size=None,
                    sampler=asked,
                    collate_fn=_unchanged,
                    num_workers=workers,
                    prefetch_factor=ahead if workers else None,
                    pin_memory=self.device.type == "cuda",
                    timeout=POLL_SECONDS if workers else 0,
                    worker_init_fn=functools.partial(_start_worker, watch.table),
                    multiprocessing_context=method if workers else None,
                    generator=torch.Generator(),  # the global one would make resuming inexact
                )
            )
        end = functools.partial(_end, answers, watch)
        atexit.register(end)  # workers ignore the SIGTERM by which multiprocessing would end them
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
            if not watch.ended:  # else the program is ending, and imported names may be gone
                atexit.unregister(end)
                end()

    evaluate = train


def fitting(wanted: int, batch: int, free: int | None) -> tuple[int, int]:
    """(processes, batches that each is ahead) for `free` bytes of shared memory; None: no limit.

    Half of it may be taken, since training and evaluation have loader processes at a time. Besides
    the batches that are ready, one is in use and one on its way.
    """
    room = math.inf if free is None else free // 2 // max(1, batch) - 2
    if 2 * wanted <= room:
        return wanted, 2
    return int(max(0, min(wanted, room))), 1


# -- in a loader process --------------------------------------------------------------------------


class Reader(Dataset[Fetched | VitcError]):
    """Reads the images of one batch: of a `Request`, or of indices as evaluation sees them.

    Errors are returned, not raised: torch would change them on their way to the main process. Names
    are flat arrays, which processes share without copying (see `store`).
    """

    def __init__(self, split: Split, config: DataConfig, plan: BatchPlan) -> None:
        self.split = replace(split, names=Names.of(split.names))
        self.config, self.plan = config, plan
        self.note: Callable[[int], None] = _ignored

    def __getitem__(self, asked: Any) -> Fetched | VitcError:
        try:
            return self._train(asked) if isinstance(asked, Request) else self._evaluate(asked)
        except VitcError as error:
            return error
        finally:
            self.note(NOTHING)

    def _train(self, request: Request) -> Fetched:
        plan, config, split = self.plan, self.config, self.split
        images = _blank((plan.micro, plan.in_chans, *plan.size))
        chosen = request.indices.copy()
        skipped: list[str] = []
        for row in range(plan.micro):
            for index in candidates(request, row, plan, len(split)):
                self.note(index)
                chosen[row], name, crop = index, split.names[index], request.crop[row]
                try:
                    stored = split.stored(index)
                    image = train_image(stored, name, plan.in_chans, crop, plan.size, config)
                    break
                except BrokenFileError:
                    if config.bad_files == "stop":
                        raise
                    skipped.append(name)
            images.numpy()[row] = _altered(image, request, row)
        return Fetched(images, chosen, tuple(skipped))

    def _evaluate(self, indices: NDArray[np.int64]) -> Fetched:
        """-1 for padding, and for a broken file that is skipped."""
        plan, config, split = self.plan, self.config, self.split
        images = _blank((len(indices), plan.in_chans, *plan.size))
        found = indices.copy()
        skipped: list[str] = []
        for row in np.flatnonzero(indices >= 0).tolist():
            index = int(indices[row])
            self.note(index)
            try:
                pixels = split.read(index, plan.in_chans)
            except BrokenFileError:
                if config.bad_files == "stop":
                    raise
                skipped.append(split.names[index])
                found[row] = -1
                continue
            images[row] = eval_image(pixels, plan.size, config.fit, config.eval_crop)
        return Fetched(images, found, tuple(skipped))


def _altered(image: Tensor, request: Request, row: int) -> NDArray[np.uint8]:
    """uint8 (C, H, W), mirrored and changed as the request asks for this row."""
    if request.flip is not None and request.flip[row]:
        image = image.flip(-1)
    if request.chain is None:
        return image.numpy()
    codes, args = request.chain.codes[row], request.chain.args[row]
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    changed = apply(pixels, codes.tolist(), args.tolist(), request.chain.bilinear)
    return changed.transpose(2, 0, 1)


def _blank(shape: tuple[int, ...]) -> Tensor:
    """uint8 zeros; in a loader process in shared memory, so that sending them copies nothing."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    size = math.prod(shape)
    shared = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def _start_worker(table: Tensor, worker: int) -> None:
    """Leave Ctrl-C, and a scheduler's SIGTERM to all processes of a job, to the main process, which
    may need more batches before it saves. A worker ends when asked to, or when orphaned."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # a collection writes to every object, and a fork shares them until then
    row = table[worker].numpy()
    row[PID] = os.getpid()

    def note(index: int) -> None:
        row[SINCE] = time.monotonic_ns()  # first: an image must not get the time of the one before
        row[IMAGE] = index

    info = get_worker_info()
    assert info is not None
    reader = info.dataset
    assert isinstance(reader, Reader)
    reader.note = note


# -- starting, waiting and ending -----------------------------------------------------------------


def _next(answers: Iterator[Any], watch: _Watch) -> Any:
    """The next answer, None after the last. Raises RunError: it will not arrive."""
    while True:
        try:
            return next(answers, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
        watch.warn_slow()
        pinning = getattr(answers, "_pin_memory_thread", None)
        if pinning is not None and not pinning.is_alive():
            raise RunError(
                "The thread that copies batches to CUDA ended: a loader process died, or page-"
                "locked memory ran out.",
                "Use fewer --data.workers.",
            )


def _end(answers: Iterator[Any], watch: _Watch) -> None:
    """End the processes as torch does, which waits for the current image, unless it is stuck."""
    watch.ended = True
    processes = getattr(answers, "_workers", [])
    for worker, seconds, _ in watch.reading():
        if seconds > END_SECONDS and worker < len(processes):
            processes[worker].kill()
    getattr(answers, "_shutdown_workers", _ignored)()
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join(END_SECONDS)


def _unchanged(answer: Any) -> Any:
    return answer


def _ignored(*_: object) -> None:
    pass


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Without torch's advice on the number of workers, Python's warning on forking with threads
    (see the top), and torch's SIGCHLD handler, which raises in the middle of whatever the main
    process does: the next batch reports it."""
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
    """What each loader process is reading, and since when, in shared memory.

    table: int64 (workers, 3) of process id, image and monotonic time in ns; a process writes its
    own row only, so reading needs no lock.
    """

    reader: Reader
    workers: int
    table: Tensor = field(init=False)
    warned: set[tuple[int, int]] = field(default_factory=set)
    ended: bool = False

    def __post_init__(self) -> None:
        self.table = torch.full((self.workers, 3), NOTHING, dtype=torch.int64)
        if self.workers:
            self.table.share_memory_()  # type: ignore[no-untyped-call]

    def reading(self) -> Iterator[tuple[int, float, str]]:
        """(process, seconds, name) of each image being read."""
        now = time.monotonic_ns()
        for worker, (_, image, since) in enumerate(self.table.tolist()):
            if image != NOTHING:
                yield worker, (now - since) / 1e9, self.reader.split.names[image]

    def warn_slow(self) -> None:
        """One warning for an image that takes so long that its disk may be gone."""
        for worker, seconds, name in self.reading():
            key = worker, int(self.table[worker, SINCE])
            if seconds > SLOW_SECONDS and key not in self.warned:
                self.warned.add(key)
                logging.getLogger("vitc").warning(
                    f"Loader process {worker} has been reading {name!r} for {seconds:.0f} s, and "
                    "the run is waiting. Check that its disk or network is still there."
                )

    def dead(self) -> str:
        """Which processes died and what they were reading; empty if none had started."""
        for _ in range(20):  # a dying process closes its files before it is seen to be dead
            alive = {process.pid for process in multiprocessing.active_children()}
            dead = [
                (w, row)
                for w, row in enumerate(self.table.tolist())
                if row[PID] != NOTHING and row[PID] not in alive
            ]
            if dead:
                break
            time.sleep(0.05)
        names = self.reader.split.names
        return "; ".join(
            f"process {worker} (pid {pid}) was reading "
            + (repr(names[image]) if image != NOTHING else "no image")
            for worker, (pid, image, _) in dead
        )

    @contextmanager
    def deaths_reported(self) -> Iterator[None]:
        """RunError if a worker cannot start or has died, usually for lack of memory."""
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
                f"The usual cause is too little memory or shared memory{free}: use fewer "
                f"--data.workers than {self.workers}, or give the machine or container more "
                "(docker run --shm-size=8g). If it is always the same image, check it with "
                "vitc data check.",
            ) from error
