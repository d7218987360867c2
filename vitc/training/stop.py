"""Was this process asked to stop?"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from vitc.errors import InterruptedRun
from vitc.machine import STOP_SIGNALS

Batch = TypeVar("Batch")


class StopSignal:
    """SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, held back until a step is done; a second one is not.

    A SIGHUP that is ignored (nohup) stays so.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for s in STOP_SIGNALS:
                if s.name != "SIGHUP" or signal.getsignal(s) != signal.SIG_IGN:
                    self.before[s] = signal.signal(s, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def ends(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of a pass of which nothing is saved. Raises InterruptedRun between them."""
        for batch in batches:
            if self.number is not None:
                raise InterruptedRun(
                    f"Stopped by {signal.Signals(self.number).name} while features of the images "
                    "were computed; no step was taken.",
                    "Repeat the command: it computes them again.",
                    self.number,
                )
            yield batch

    def __exit__(self, *error: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)
        self.before = {}
