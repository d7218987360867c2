"""The errors of vitc: catch `VitcError` for all of them.

VitcError
├── ConfigError (ValueError)   a setting, name or path is wrong                          exit 2
├── DataError                  the images cannot be used as they are                     exit 2
│   └── BrokenFileError        one file cannot be decoded; found during a run            exit 1
├── CheckpointError            a checkpoint is missing, damaged or of another model      exit 1
└── RunError                   a run started and could not continue                      exit 1
    ├── DivergedError          the loss or the gradient stopped being finite             exit 1
    ├── LostProcess            another process of the run has ended                      exit 1
    └── InterruptedRun         SIGTERM (exit 143) or Ctrl-C (130); the state is saved

The three parts of a message are in docs/words.md; the last, what to do, is `hint`, a field of its
own under `--json`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar


class VitcError(Exception):
    """Base of all errors a user can cause. `message`: what is wrong, `hint`: what to do.

    `elsewhere`: of a run in several processes, another one reports it.
    """

    exit_code: ClassVar[int] = 1
    elsewhere: bool = False

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message if hint is None else f"{message}\n{hint}")

    def __reduce__(self) -> tuple[type[VitcError], tuple[str | None, ...]]:
        return type(self), (self.message, self.hint)  # errors of loader workers are pickled


class ConfigError(VitcError, ValueError):
    """A setting, name or path given by the user is wrong."""

    exit_code = 2


class DataError(VitcError):
    """The images cannot be trained or evaluated on as they are."""

    exit_code = 2


class BrokenFileError(DataError):
    """One file cannot be decoded. `why`: the reason alone; `kind`: damaged, no image, too large."""

    exit_code = 1

    def __init__(
        self, message: str, hint: str | None = None, why: str = "", kind: str = "damaged"
    ) -> None:
        super().__init__(message, hint)
        self.why, self.kind = why or message, kind

    def __reduce__(self) -> tuple[type[VitcError], tuple[str | None, ...]]:
        return type(self), (self.message, self.hint, self.why, self.kind)


class CheckpointError(VitcError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class RunError(VitcError):
    """A run started and could not continue."""


class DivergedError(RunError):
    """The loss or the gradient norm stopped being finite; no weight took that step."""


class LostProcess(RunError):
    """Another process of the run was killed or failed; what was saved can be resumed."""


class InterruptedRun(RunError):
    """The run was asked to stop and saved its state."""

    def __init__(self, message: str, hint: str | None = None, signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number

    @property
    def run_exit_code(self) -> int:
        """128 + signal: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1."""
        return 128 + self.signal_number


def suggest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def suggest_beside(path: Path) -> str:
    """The same for a path that does not exist: the closest one in its folder."""
    try:
        there = os.listdir(path.parent)
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return ""
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
    return f" Did you mean {str(path.parent / close[0])!r}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str], hint: str | None = None) -> ConfigError:
    """The one message for an unknown name: the value, a suggestion, and what is allowed."""
    names = sorted(known)
    message = f"Unknown {kind} {name!r}.{suggest(name, names)}"
    return ConfigError(message, hint or f"Known: {', '.join(names)}.")


def refuse(problems: Sequence[str], hint: str | None = None) -> None:
    """Raises ConfigError, which lists all problems at once; there may be none."""
    if problems:
        raise ConfigError("\n".join(problems), hint)
