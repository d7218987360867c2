"""Which images run through the model together? Those that arrive within a few milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Row = NDArray[np.float32]


class _Job(NamedTuple):
    image: Tensor
    answer: Future[Row]


class Batcher:
    """One thread that computes the rows of images, several at once.

    compute: n images -> (n, K). A batch is of at most `batch` images and waits at most `window`
    seconds after its first; less where no more than it has are `expected`.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Tensor]], Row],
        batch: int,
        window: float,
        expected: Callable[[], int],
        observe: Callable[[float], None],
    ) -> None:
        self.compute, self.batch, self.window = compute, batch, window
        self.expected, self.observe = expected, observe
        self.waiting: SimpleQueue[_Job | None] = SimpleQueue()
        self.thread = Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    def submit(self, image: Tensor) -> Future[Row]:
        """Its row, later. Cancelled before its batch has begun, it is not computed."""
        job = _Job(image, Future())
        self.waiting.put(job)
        return job.answer

    def close(self) -> None:
        """End the thread after all that was submitted."""
        self.waiting.put(None)
        self.thread.join()

    def _work(self) -> None:
        while (first := self.waiting.get()) is not None:
            jobs, until = [first], time.monotonic() + self.window
            while len(jobs) < self.batch and len(jobs) < self.expected():
                try:
                    job = self.waiting.get(timeout=max(0.0, until - time.monotonic()))
                except Empty:
                    break
                if job is None:
                    self.waiting.put(None)
                    break
                jobs.append(job)
            self._answer([job for job in jobs if job.answer.set_running_or_notify_cancel()])

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            rows = self.compute([job.image for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:  # so that one image costs no other its answer
                for job in jobs:
                    self._answer([job])
            return
        self.observe(len(jobs))
        for job, row in zip(jobs, rows, strict=True):
            job.answer.set_result(row)
