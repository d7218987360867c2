"""Was this process asked to stop?"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from vitc.machine import STOP_SIGNALS


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

    def __exit__(self, *error: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)
        self.before = {}
