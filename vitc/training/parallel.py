"""The processes of one run: how they join, agree on what they train, and notice that one is lost.

torchrun, or whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, starts them. Notes travel
between them through its key-value store, tensors through a process group. Each shows a sign of life
in the store every second, with the step that it is at.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from vitc.errors import ConfigError, InterruptedRun, LostProcess, RunError, VitcError
from vitc.wording import few

BEAT_SECONDS = 1.0
SILENT_SECONDS = 10.0  # without a sign of life, before the others report it
LOST_SECONDS = 4.0  # the same, once an operation of all has failed
TIMEOUT = timedelta(minutes=10)  # of an operation of all
WATCHERS = 2  # processes that watch all: the first, and one in case it is the first that hangs
Decided = TypeVar("Decided")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; alone unless `joined`.

    `sum_`, `any`, `wait` and `share` need the process group of `processes`.
    """

    rank: int = 0
    world: int = 1
    watch: Watch | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum in place over all processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process: all must ask together."""
        if self.world == 1:
            return flag
        return bool(self.sum_(torch.tensor(float(flag), device=device)) > 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def share(self, model: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers."""
        for tensor in model.state_dict(keep_vars=True).values() if self.world > 1 else ():
            dist.broadcast(tensor.detach(), 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank; all must ask together."""
        if self.watch is None:
            return [value]
        topic = self.watch.topic("gather")
        self.watch.post(f"{topic}/{self.rank}", value)
        if self.first:
            values = [self.watch.read(f"{topic}/{rank}") for rank in range(self.world)]
            self.watch.post(topic, values)
        found: list[Any] = self.watch.read(topic)
        return found

    def follow(self, decide: Callable[[], Decided]) -> Decided:
        """What `decide` returns, or the VitcError it raises, in the first process, for all."""
        if self.watch is None:
            return decide()
        topic = self.watch.topic("first")
        if not self.first:
            found = self.watch.read(topic)
            if isinstance(found, VitcError):
                found.elsewhere = True
                raise found
            decided: Decided = found
            return decided
        try:
            decided = decide()
        except VitcError as error:
            self.watch.post(topic, error)
            raise
        self.watch.post(topic, decided)
        return decided

    def agree(self, values: Mapping[str, Any], what: str, hint: str) -> None:
        """Raises ConfigError where `values` differ between processes, naming which and where."""
        everyone = self.gather({name: repr(value) for name, value in values.items()})
        if self.watch is None:
            return
        lines = []
        for name, here in everyone[0].items():
            others = [r for r in range(self.world) if everyone[r].get(name, "absent") != here]
            if others:
                there = everyone[others[0]].get(name, "absent")
                places = few((self.watch.name(r) for r in others), 3)
                lines.append(f"  {name}: {here} on {self.watch.name(0)}, {there} on {places}")
        if lines:
            error = ConfigError(
                f"The processes of this run have {what}:\n" + "\n".join(lines), hint
            )
            error.elsewhere = not self.first
            raise error

    def asked(self, here: bool) -> bool:
        """Whether a run is asked to stop: `here`, or a second ago at the latest elsewhere."""
        if self.watch is None:
            return here
        if here and not self.watch.stop:
            self.watch.stop = True
            self.watch.store.set("stop", "")
        return self.watch.stop

    def at(self, step: int) -> None:
        """Note the step that this process is at, for the others."""
        if self.watch is not None:
            self.watch.step = step

    @contextlib.contextmanager
    def losses_reported(self) -> Iterator[None]:
        """LostProcess instead of the RuntimeError of an operation that lacks a process."""
        try:
            yield
        except RuntimeError:
            lost = None if self.watch is None else self.watch.lost()
            if lost is None:
                raise
            raise lost from None


@dataclass(eq=False)
class Watch:
    """The store through which the processes of a run know of each other.

    `store` is shared by the threads of this process, each call being short; `group` is where the
    process group meets.
    """

    store: Store
    group: Store
    rank: int
    world: int
    step: int = 0
    stop: bool = False
    """A process was asked to stop."""
    report: Callable[[str], None] = field(default=logging.getLogger("vitc").warning)
    """Where to what is noticed about the others goes."""
    places: list[tuple[str, int]] = field(default_factory=list)
    """(host, pid) by rank."""
    ended: threading.Event = field(default_factory=threading.Event)

    def topic(self, kind: str) -> str:
        """A key that is new, and the same in all processes that ask as often."""
        return f"{kind}/{self.store.add(f'{kind} of {self.rank}', 1)}"

    def post(self, key: str, value: Any) -> None:
        self.store.set(key, pickle.dumps(value))  # type: ignore[arg-type]

    def read(self, key: str) -> Any:
        """The value of a key, once it is there. Raises LostProcess: a process ended meanwhile."""
        pause = 0.01
        while not self.store.check([key]):
            if (lost := self._verdict()) is not None:
                raise lost
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return pickle.loads(self.store.get(key))

    def name(self, rank: int) -> str:
        host, pid = self.places[rank]
        return f"rank {rank} (process {pid} on {host})"

    def join(self) -> None:
        """Wait until all are here, and note who they are."""
        self._beat(0)
        self.post(f"place/{self.rank}", (socket.gethostname(), os.getpid()))
        begun = time.monotonic()
        while missing := [r for r in range(self.world) if not self.store.check([f"place/{r}"])]:
            if time.monotonic() - begun > TIMEOUT.total_seconds():
                raise RunError(
                    f"{len(missing)} of {self.world} processes have not started: ranks "
                    f"{few(map(str, missing))}.",
                    "Look at the output of torchrun on their machines.",
                )
            time.sleep(0.05)
        self.places = [self.read(f"place/{rank}") for rank in range(self.world)]

    # -- signs of life ----------------------------------------------------------------------------

    def _beat(self, count: int) -> None:
        self.store.set(f"beat/{self.rank}", json.dumps([count, self.step]))

    def beats(self) -> list[list[int]]:
        """[count, step] by rank."""
        found = self.store.multi_get([f"beat/{rank}" for rank in range(self.world)])
        return [json.loads(text) for text in found]

    def keep(self) -> None:
        """Show signs of life until `ended`, and report processes that show none."""
        seen = [([-1, 0], 0.0)] * self.world
        silent: dict[int, float] = {}
        count = 0
        with contextlib.suppress(RuntimeError):  # the store is gone: its process, or the run, ended
            while not self.ended.wait(BEAT_SECONDS):
                count += 1
                self._beat(count)
                self.stop = self.stop or self.store.check(["stop"])
                if self.rank >= WATCHERS:
                    continue
                now = time.monotonic()
                for rank, beat in enumerate(self.beats()):
                    if beat != seen[rank][0]:
                        seen[rank] = beat, now
                        if (since := silent.pop(rank, None)) is not None:
                            self.report(f"{self.name(rank)} is back after {now - since:.0f} s.")
                    elif now - seen[rank][1] > SILENT_SECONDS and rank not in silent:
                        if self.store.check([f"end/{rank}"]):
                            continue
                        silent[rank] = since = seen[rank][1]
                        clock = datetime.fromtimestamp(time.time() - (now - since), UTC)
                        self.report(
                            f"{self.name(rank)} has shown no sign of life since "
                            f"{clock:%H:%M:%S} UTC, at step {beat[1]}: the others wait for it. Is "
                            "it stopped, or its machine gone? Then end the job and resume it."
                        )

    # -- who is gone ------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        """This process leaves the run; `error` is the reason if it failed."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"end/{self.rank}", "")
            if error is not None and not isinstance(error, LostProcess | InterruptedRun):
                text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
                self._decide(f"{self.name(self.rank)} ended at step {self.step}: {text}")
            until = time.monotonic() + LOST_SECONDS  # the first process may be the store's
            while self.rank == 0 and time.monotonic() < until:
                if self.store.check([f"end/{rank}" for rank in range(self.world)]):
                    break
                time.sleep(0.05)

    def _decide(self, text: str) -> None:
        """What ended the run, unless another process has noted it before."""
        self.store.compare_set("verdict", "", json.dumps([self.rank, text]))

    def _verdict(self) -> LostProcess | None:
        if not self.store.check(["verdict"]):
            return None
        rank, text = json.loads(self.store.get("verdict"))
        error = LostProcess(
            text,
            "Once its cause is removed the same command resumes the run from its last checkpoint.",
        )
        error.elsewhere = rank != self.rank
        return error

    def lost(self) -> LostProcess | None:
        """Who is gone, after an operation of all has failed; None: nobody."""
        begun = time.monotonic()
        try:
            first = self.beats()
            while (found := self._verdict()) is None:
                if time.monotonic() - begun > LOST_SECONDS:
                    pairs = enumerate(zip(first, self.beats(), strict=True))
                    gone = [r for r, (old, new) in pairs if old == new and r != self.rank]
                    if not gone:
                        return None
                    names = few(map(self.name, gone), 3)
                    self._decide(
                        f"Lost {names} at step {self.step}: killed, out of memory, or its machine "
                        "is gone."
                    )
                time.sleep(0.1)
        except RuntimeError:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            found = LostProcess(
                f"Lost the processes at {where} at step {self.step}: rank 0, or its torchrun, "
                "has ended.",
                "The same command resumes the run from its last checkpoint.",
            )
        return found


def _variables() -> list[str]:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set.",
            "Start the processes with torchrun -m vitc ..., or unset WORLD_SIZE.",
        )
    return [os.environ[name] for name in names]


@functools.cache
def _meeting(*variables: str) -> tuple[Store, int, int]:
    """(store, rank, world) of the processes that these variables describe. Kept for a later run of
    this program: the first process may hold the store, and others be on their way to it."""
    handler = import_module("torch.distributed.rendezvous").rendezvous
    try:
        store, rank, world = next(handler("env://", timeout=TIMEOUT))
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"The processes of this run cannot be joined: {str(error).splitlines()[0]}.",
            "Does MASTER_ADDR name the machine of rank 0, and does MASTER_PORT reach it?",
        ) from error
    return store, rank, world


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, in touch; alone when it started none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    store, rank, world = _meeting(*_variables())
    times = store.add(f"joined by rank {rank}", 1)  # a script may train several runs
    # A connection of its own: operations of the process group keep theirs while they wait.
    own = store.clone()  # type: ignore[attr-defined]
    group = PrefixStore(f"vitc/{times}/group", store)
    watch = Watch(PrefixStore(f"vitc/{times}", own), group, rank, world)
    watch.join()
    thread = threading.Thread(target=watch.keep, daemon=True)
    thread.start()
    procs, failed = Processes(rank, world, watch), None
    try:
        with procs.losses_reported():
            yield procs
    except BaseException as error:
        failed = error
        raise
    finally:
        watch.ended.set()
        thread.join(2 * BEAT_SECONDS)
        watch.end(failed)


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The same, and the process group through which they compute together."""
    with joined() as procs:
        if procs.watch is None:
            yield procs
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        own = not dist.is_initialized()
        if own:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend,
                store=procs.watch.group,
                rank=procs.rank,
                world_size=procs.world,
                timeout=TIMEOUT,
            )
        try:
            yield procs
        finally:
            if own:
                dist.destroy_process_group()


def in_processes(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model, the gradients of which are averaged over all processes. Buffers are not."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    ids = [device.index] if device.type == "cuda" else None
    options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(model, device_ids=ids, **options)


def is_restart() -> bool:
    """Whether torchrun has started this process again, after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
