"""Set a study up and run what is missing of it."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

from vitc.errors import ConfigError, InterruptedRun
from vitc.files import FolderLock
from vitc.machine import STOP_SIGNALS, environment, other_versions
from vitc.progress import Progress
from vitc.runs.folder import ENDED, Run
from vitc.study.contrasts import power_lines
from vitc.study.design import Plan, Trial, mixed
from vitc.study.images import check_unchanged
from vitc.study.kept import disk_line, drop_checkpoints
from vitc.study.launch import Engine, LocalEngine, device_of, run_all
from vitc.study.standing import Standing, standing, trials_by_id
from vitc.study.study_folder import Keep, StudyFolder
from vitc.study.work import allow_again, check_machine, locks_work, read_tries, status_of
from vitc.wording import counted, duration


def conduct(
    folder: StudyFolder,
    plan: Plan,
    *,
    engine: Engine | None = None,
    allow_mixed: bool = False,
    allow_changed_data: bool = False,
    retry_failed: bool = False,
    keep: Keep | None = None,
    quiet: bool = False,
    command: str = "",
) -> Standing:
    """Write or join the plan, then run every trial that has not ended.

    `engine` launches the workers; without one, processes on this machine run the trials.
    It is no part of the plan: a study may be resumed with another, which its history then notes.
    Nor is `keep`: so many of the last trials to end keep their checkpoints, beside the best of each
    group, or "all" do; None: as before, 3 in a new study (`vitc.study.kept`).

    Raises ConfigError: another study is there, or contenders differ in what must agree and
    `allow_mixed` is not set (those of an exhibit may, its machines and versions not); DataError:
    the images changed since trials were run, and `allow_changed_data` is not set. Raises
    InterruptedRun on SIGTERM or Ctrl-C, once the running trials have saved their state: the same
    command resumes.
    """
    if keep not in (None, "all") and (type(keep) is not int or keep < 0):
        raise ConfigError(f"keep {keep!r} must be a number of trials, or 'all'.")
    differing = mixed(plan)
    if differing and not (allow_mixed or plan.exhibit):  # an exhibit's differ as in the paper
        raise ConfigError(
            "The contenders would not be compared fairly:\n  " + "\n  ".join(differing),
            "Make them agree, or add --allow-mixed; the report will name it.",
        )
    here = environment()
    engine = engine or LocalEngine()
    here["engine"] = engine.name
    folder.path.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder.path):
        plan = folder.joined(plan)
        runs, moved = standing(folder, plan).runs, bool(folder.moves(plan))
        changed = check_unchanged(plan, runs, allow_changed_data, moved)
        record = folder.start(plan, here, command, keep)
        drop_checkpoints(folder, list(plan.trials()), record.get("keep", "all"))
        _same_machine(folder, record, here, allow_mixed, command)
        if differing:
            _note_once(folder, record, f"mixed on purpose: {'; '.join(differing)}", command)
        for what in changed:
            _note_once(folder, record, what, command)
        before = standing(folder, plan)
        again = [i for i, r in before.runs.items() if r.status == "failed"] if retry_failed else []
        if again:
            folder.note(f"ran again after failure: {', '.join(again)}", command)
            for name in again:
                allow_again(folder.trials / name)
        trials = [
            t
            for t in trials_by_id(plan).values()
            if t.id in again or t.id not in before.runs or not before.runs[t.id].ended
        ]
        if trials:
            with contextlib.closing(engine):
                engine.prepare(folder, device_of(plan), allow_mixed)
                _run(folder, plan, trials, engine, quiet)
            then = record["environment"]["versions"]
            other = [
                f"{change} on {entry['host']}"
                for t in trials
                for entry in read_tries(folder.trial(t))
                for change in other_versions(then, entry["versions"])
            ]
            if other:
                what = f"other versions: {'; '.join(dict.fromkeys(other))}"
                _note_once(folder, record, what, command)
    return standing(folder, plan)


def work_on(
    folder: StudyFolder,
    engine: Engine,
    *,
    part: tuple[int, int] = (1, 1),
    allow_mixed: bool = False,
    allow_changed_data: bool = False,
    quiet: bool = False,
) -> Standing:
    """Run the unfinished trials of a study that exists, or of the i-th of n equal parts of it.

    Any number of machines may do so at a time: each takes the trials that no other has claimed,
    and returns when there are none. Raises ConfigError: this machine does not see the study, has
    other versions, or its file system has no locks; DataError, InterruptedRun, as `conduct`.
    """
    check_machine(folder, allow_mixed)
    if part == (1, 1) and engine.name == "local" and not locks_work(folder.path):
        raise ConfigError(
            f"The file system of {folder.path} has no locks, so that two machines could run the "
            "same trial.",
            "Give each machine its part: --slice 1/2 and --slice 2/2.",
        )
    plan, _ = folder.read()
    now = standing(folder, plan)
    check_unchanged(plan, now.runs, allow_changed_data)
    trials = list(trials_by_id(plan).values())[part[0] - 1 :: part[1]]
    trials = [t for t in trials if t.id not in now.runs or not now.runs[t.id].ended]
    if trials:
        with contextlib.closing(engine):
            engine.prepare(folder, device_of(plan), allow_mixed)
            _run(folder, plan, trials, engine, quiet, wait=False)
    return standing(folder, plan)


def _run(
    folder: StudyFolder,
    plan: Plan,
    trials: list[Trial],
    engine: Engine,
    quiet: bool,
    wait: bool = True,
) -> None:
    every, keep = list(plan.trials()), folder.read()[1].get("keep", "all")
    total = len({trial.id for trial in every})
    left = list(trials)
    screen = Progress(plan.name, total, "trials", quiet=quiet, plain_seconds=math.inf)
    screen.start_at(total - len(left))
    resumed = f", {total - len(left)} already there" if total > len(left) else ""
    where = f"engine {engine.name}, at most {engine.size} at a time"
    if engine.name == LocalEngine.name:
        where = counted(engine.size, "worker")
    screen.line(f"study {plan.name}: {total} trials{resumed}; {where}")
    for text in power_lines(plan):
        screen.line(text)
    next_look = 0.0

    def going() -> bool:
        nonlocal next_look
        began = time.monotonic()
        if began > next_look:
            look()
            took = time.monotonic() - began  # thousands of trials on a network file system
            next_look = began + max(1.0, 20 * took)
        return not caught

    def look() -> None:
        ended = [t for t in left if status_of(folder.trial(t)) in ENDED]
        if ended:
            drop_checkpoints(folder, every, keep)
        for trial in ended:
            left.remove(trial)
            screen.update(screen.done + 1, note="")
            screen.line(f"[{screen.done}/{total}] {trial.label}: {_end(folder, trial)}")
        screen.update(screen.done, note="")

    with screen, _stop_signal() as caught:
        run_all(folder, [t.id for t in trials], engine, going, wait)
        look()
        screen.line(disk_line(folder, every, keep))
    if caught:
        raise InterruptedRun(
            f"Stopped by {signal.Signals(caught[0]).name}; running trials saved their state.",
            f"The same command resumes; to see progress: vitc study status {folder.path}",
            caught[0],
        )


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that SIGTERM or Ctrl-C is put into; the second one is not held."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def handler(number: int, frame: object) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for which, old in before.items():
            signal.signal(which, old)

    with contextlib.suppress(ValueError):  # not the main thread: nobody to ask
        for which in STOP_SIGNALS:
            if signal.getsignal(which) != signal.SIG_IGN:  # as nohup leaves it
                before[which] = signal.signal(which, handler)
    try:
        yield caught
    finally:
        if not caught:
            restore()


def _same_machine(
    folder: StudyFolder, record: Mapping[str, Any], here: Mapping[str, Any], allow: bool, cmd: str
) -> None:
    """Versions and hardware must be those of the start, or the change is recorded; so is another
    engine, which needs no leave."""
    then = record["environment"]
    changed = other_versions(then["versions"], here["versions"])
    engines = (then.get("engine", LocalEngine.name), here["engine"])
    if engines[0] != engines[1]:
        _note_once(folder, record, f"continued with engine {engines[1]}", cmd)
    # where another engine runs the trials is known to the trials alone
    for k in ("cpu", "gpus") if set(engines) == {LocalEngine.name} else ():
        if then["hardware"].get(k) != here["hardware"].get(k):
            changed.append(f"{k} {then['hardware'].get(k)} -> {here['hardware'].get(k)}")
    if not changed:
        return
    if not allow:
        raise ConfigError(
            "The study was begun elsewhere: " + "; ".join(changed) + ".",
            "Continue there, or add --allow-mixed; the report will name it.",
        )
    _note_once(folder, record, f"continued with other conditions: {'; '.join(changed)}", cmd)


def _note_once(folder: StudyFolder, record: Mapping[str, Any], what: str, command: str) -> None:
    if all(entry["what"] != what for entry in record["history"]):
        folder.note(what, command)


def _end(folder: StudyFolder, trial: Trial) -> str:
    """How a trial ended: its error on validation, or why it has none, and its seconds."""
    run = Run(folder.trial(trial))
    seconds = duration(float(run.summary.get("train_seconds") or 0.0))
    if run.status == "done" and run.top1 is not None:
        return f"error {100 - run.top1:.2f} % ({seconds})"
    reason = str(run.summary.get("error") or "").strip().splitlines()
    return f"{run.status}{': ' + reason[-1] if reason else ''} ({seconds})"
