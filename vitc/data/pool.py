"""How do several processes work through many images, with the results in order? Free of torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from vitc.machine import STOP_SIGNALS

Progress = Callable[[int, int], None]  # images done, of how many
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Chunk], Result],
    chunks: Sequence[Chunk],
    workers: int,
    start: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """`work(chunk)` of each chunk, by `workers` processes (1: in this one); to be closed.

    `work` is sent to each process once, and `start` is called there first. Raises
    BrokenProcessPool: a process died.
    """
    if workers <= 1 or len(chunks) <= 1:
        yield from map(work, chunks)
        return
    method = "fork" if sys.platform.startswith("linux") else "spawn"
    pool = ProcessPoolExecutor(
        workers, get_context(method), initializer=_start, initargs=(work, start, os.getpid())
    )
    waiting: deque[Future[Result]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_run, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any] | None = None  # of a worker process, which serves one pool


def _start(work: Callable[[Any], Any], start: Callable[[], None] | None, parent: int) -> None:
    global _work
    _work = work
    for number in STOP_SIGNALS:  # the main process handles them
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if start is not None:
        start()
    threading.Thread(target=_end_when_orphaned, args=(parent,), daemon=True).start()


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run(chunk: Any) -> Any:
    assert _work is not None
    return _work(chunk)
