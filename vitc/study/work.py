"""One trial, run the same way whoever places it: in a worker here, a Ray task or a SLURM job.

`run_trial` runs it in this process. A trial over several processes is one `torchrun` of this very
file, told by a spec: a JSON file in the study's folder that names the config and the run folder.
The trial's run folder is all that it writes, exactly as on this machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitc.config import RunConfig, from_saved, to_saved
from vitc.errors import ConfigError, DivergedError, InterruptedRun, VitcError
from vitc.files import LOCK, FolderLock, read_json, write_atomically, write_json
from vitc.plugins.consent import TRUSTED_ENV, consent
from vitc.runs.folder import read_summary
from vitc.study.design import PLAN_FILE

RESULTS = ("done", "diverged")  # such a trial has its result, and is not run again
LEFT = "left"  # a trial that could not be started where it was placed: nothing is said of it
SPECS = "specs"  # the folder, in a study's, of trials that run in several processes
LOCK_SECONDS = 60.0  # a lost worker may write a little longer than it is heard of
SAVE_SECONDS = 120.0  # for a trial that was asked to stop, to save its state
DEAF = {signal.SIGUSR1, signal.SIGUSR2}  # what SLURM sends to every process of a job at its end


def run_trial(config: RunConfig, out: Path, engine: str) -> tuple[str, str | None]:
    """Run a trial in its folder, from its last checkpoint: (status, error); raises no VitcError.

    A trial whose result is there is not run again. `engine` and this host are written to the
    run's events.log (`vitc.study.runs.Run.places`).
    """
    from vitc.training.loop import run

    try:
        summary = read_summary(out) or {}
        if summary.get("status") in RESULTS:
            return str(summary["status"]), None
        busy = _busy(out) if os.environ.get("RANK", "0") == "0" else None
        if busy is not None:
            return LEFT, busy
        return run(config, out, quiet=True, notes=[placed(engine)]).status, None
    except InterruptedRun as error:
        return "interrupted", error.message
    except VitcError as error:
        return "diverged" if isinstance(error, DivergedError) else "failed", error.message
    except Exception:
        return "failed", traceback.format_exc(limit=5)


def placed(engine: str) -> str:
    """The line of events.log that says where a part of a trial ran; read by `runs.PLACED`."""
    return f"placed by engine {engine} on host {socket.gethostname()}"


def unseen(out: Path) -> str | None:
    """Why this machine cannot run the trial: it does not see the study's folder; else None."""
    study = out.parents[1]
    if (study / PLAN_FILE).exists():
        return None
    return (
        f"{socket.gethostname()} does not see {study}: a study for several machines must lie "
        "on a file system that all of them mount under the same name."
    )


def _busy(out: Path) -> str | None:
    """Wait until nobody writes the run folder; who still does after that, else None."""
    end = time.monotonic() + LOCK_SECONDS
    while (out / LOCK).exists() and os.access(out / LOCK, os.W_OK):
        try:
            FolderLock(out).close()
            return None
        except ConfigError as error:
            if time.monotonic() > end:
                return error.message
        time.sleep(0.2)
    return None


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started meanwhile never hear SIGUSR1 and SIGUSR2: SLURM sends them to all, and
    only the first process of a job knows what to do then."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- what a trial elsewhere has to be told ---------------------------------------------------------


def trusted_words() -> str:
    """The custom files that are trusted here, for a process on another machine."""
    return consent()


def trust_words(words: str) -> None:
    """Trust in this process what `trusted_words` gave."""
    os.environ[TRUSTED_ENV] = words


# -- a trial in several processes ------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Over what one trial spreads: `processes` on each of `nodes` machines, this being `rank`."""

    processes: int
    nodes: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0

    def command(self, spec: Path) -> list[str]:
        """`torchrun` of the trial that the spec tells."""
        where = (
            ["--standalone"]
            if self.nodes == 1
            else [
                f"--nnodes={self.nodes}",
                f"--node-rank={self.rank}",
                f"--master-addr={self.address}",
                f"--master-port={self.port}",
            ]
        )
        where += [f"--nproc-per-node={self.processes}"]
        module = ["-m", "vitc.study.work", str(spec)]
        return [sys.executable, "-m", "torch.distributed.run", *where, *module]


def spec_file(out: Path) -> Path:
    """Where the spec of the trial in `out` lies: beside the study's trials."""
    return out.parents[1] / SPECS / f"{out.name}.json"


def write_spec(config: RunConfig, out: Path, engine: str) -> Path:
    """Write the spec of a trial beside the study's trials; returns its path."""
    spec = spec_file(out)
    spec.parent.mkdir(exist_ok=True)
    values = {"config": to_saved(config), "out": str(out), "engine": engine}
    write_json(spec, values, indent=None)
    return spec


class Torchrun:
    """One trial in several processes, from here until `wait` returns."""

    def __init__(self, spec: Path, span: Span) -> None:
        self.answer = spec.with_suffix(".answer")
        if span.rank == 0:
            self.answer.unlink(missing_ok=True)
        with deaf_children():
            self.process = subprocess.Popen(span.command(spec), preexec_fn=_end_with_parent)

    def wait(self, stop_when: Callable[[], bool] = lambda: False) -> tuple[str, str | None]:
        """(status, error) once it has ended; `died` where the processes left no word.

        Once `stop_when` says so, or on a KeyboardInterrupt (how Ray asks a task to stop), its
        state is saved first.
        """
        try:
            while self.process.poll() is None and not stop_when():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1.0)
        except KeyboardInterrupt:
            pass
        self.stop()
        if self.answer.exists():
            values = read_json(self.answer)
            return str(values["status"]), values["error"]
        return "died", f"its processes ended with code {self.process.returncode} and left no word"

    def stop(self) -> None:
        """Ask it to save its state, and wait until it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
        try:
            self.process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _end_with_parent() -> None:
    """Linux: SIGTERM when the process that started this one dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main(spec: Path) -> int:
    """One of the processes: run the trial; the first one leaves the answer."""
    values = read_json(spec)
    config = from_saved(values["config"], spec)
    status, error = run_trial(config, Path(values["out"]), values["engine"])
    good = status in (*RESULTS, "interrupted")
    if os.environ.get("RANK", "0") == "0":
        answer = json.dumps({"status": status, "error": error})
        write_atomically(spec.with_suffix(".answer"), answer)
    elif not good:  # torchrun ends all processes with the first that fails: leave that one its word
        time.sleep(5)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
