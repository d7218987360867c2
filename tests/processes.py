"""Several processes of one run, forked here, so that torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import warnings
from collections.abc import Callable
from typing import Any

from vitc.errors import VitcError

SECONDS = 120.0  # before processes that hang are killed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Group:
    """`world` processes that call `work(rank)`; `results` waits for what each returned or raised,
    a negative exit code for one that was killed."""

    def __init__(self, world: int, work: Callable[[int], Any]) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipes, self.processes = [], []
        port = str(free_port())
        for rank in range(world):
            here, there = fork.Pipe(duplex=False)
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            process = fork.Process(target=_work, args=(work, rank, variables, there))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
                process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.processes[rank].pid or 0, number)

    def results(self) -> list[Any]:
        found: list[Any] = []
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            value: Any = "it hangs"
            if pipe.poll(SECONDS):
                try:
                    value = pipe.recv()
                except EOFError:
                    process.join()
                    value = process.exitcode
            found.append(value)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        return found


def _work(work: Callable[[int], Any], rank: int, variables: dict[str, object], pipe: Any) -> None:
    os.environ |= {k: str(v) for k, v in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}
    value: Any
    try:
        value = work(rank)
    except VitcError as error:
        value = type(error).__name__, str(error), error.elsewhere
    except BaseException as error:
        value = f"{type(error).__name__}: {error}"
    pipe.send(value)
