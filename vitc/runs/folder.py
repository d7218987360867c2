"""The run folder: what a run writes, and how others read it. Free of torch at import.

    config.json     the RunConfig, written first
    data.json       classes, preprocessing and fingerprint of the images, the held-out ones by name
    images.npz      every image with its split and digest (vitc.runs.images)
    metrics.jsonl   one JSON object a line: {"kind": "train" | "eval" | "watch", "step": ...}
    events.log      what happened when, for people
    legs.json       settings of earlier legs, where some were changed on the way (vitc.runs.legs)
    heartbeat.json  what the run uses right now (vitc.training.usage); gone once it has ended
    summary.json    the result; present once the run has ended, however it ended
    checkpoints/    see vitc.runs.checkpoint
    report.*, against.*, test.json  pages, and readings of the test split (vitc.runs.results)
    sources/        the files of custom classes, as they were
    tracker.json, tensorboard/, wandb/, mlflow/  of train.track (vitc.training.trackers)
    tries.json      of a study's trial: where it was run, and how each try ended
    .lock           held by the process that writes the folder
    .claim          of a study's trial: held by the process that runs it

JSON is strict: a float that is not finite is written as null. Names that start with `.tmp-` are
unfinished writes of a process that died; whoever writes the folder next removes them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from vitc import files
from vitc.config import RunConfig, differences, read_config, to_saved
from vitc.data.dataset import DataSet
from vitc.data.identity import Images, joined, to_bytes
from vitc.errors import CheckpointError, ConfigError, DataError, RunError
from vitc.files import read_json, write_json
from vitc.plugins.consent import copies
from vitc.plugins.names import SOURCES
from vitc.runs import images as run_images
from vitc.runs.legs import LEGS, Legs, may_change, read_legs, write_legs
from vitc.wording import printable, short

CONFIG, DATA, SUMMARY = "config.json", "data.json", "summary.json"
METRICS, EVENTS, HEARTBEAT = "metrics.jsonl", "events.log", "heartbeat.json"
PAGES = ("report.html", "report.json", "report.csv", "against.html", "against.json", "against.csv")
RESULTS = ("test.json", *PAGES)  # see vitc.runs.results
TRACKER, TENSORBOARD = "tracker.json", "tensorboard"  # see vitc.training.trackers
PARTS = (METRICS, EVENTS, HEARTBEAT, DATA, LEGS, SUMMARY, TRACKER)  # that a new run begins without
CLAIM, TRIES = ".claim", "tries.json"
CHECKPOINTS, LATEST = "checkpoints", "latest"
START, BEST = "start.safetensors", "best.safetensors"  # weights that a run may return to
GOOD = "good"  # in checkpoints/: states to roll back to (vitc.training.guard)
CHECKPOINT_NAME = re.compile(r"step_(\d{1,18})(\.old)?")
ENDED = ("done", "diverged", "failed")  # a trial with one of these is never run again
PLACED = re.compile(r"^\S+  placed by engine (\w+) on host (\S+)$", re.MULTILINE)

HARMLESS = frozenset(
    {
        "name",
        "data.path",  # scratch disks move; write_data refuses other images, labels and splits
        "data.image_column",
        "data.label_column",
        "data.split_column",
        "data.splits",
        "data.workers",
        "train.compile",
        "train.device",
        "train.threads",
        "train.log_every_steps",
        "train.save_every_seconds",
        "train.save_every_steps",
        "train.keep_checkpoints",
        "train.keep_every_epochs",
        "train.keep_best",
        "train.on_divergence",
        "train.track",
        "train.profile",
    }
)
"""Settings that may change when a run is resumed: they decide where and how often, or what is done
with a run that has gone bad, not what is learned. Another device or thread count, or steps that are
compiled no longer, keep the run but not its bits; events.log then notes it."""

METRICS_LIMIT = 1 << 30  # bytes; a stranger's file must not fill the memory
WITHIN = "Within a run --optim.lr, --optim.schedule and --train.epochs may change"
ELSEWHERE = "Restart it with --overwrite, or choose another --out."


def finished(run: Path, length: str = "--train.epochs N") -> ConfigError:
    """That a run is finished, and how it is trained longer: for `length`."""
    top1 = Run(run).top1
    result = f" (top1 {top1:.2f} %)" if isinstance(top1, int | float) else ""
    longer = f"Train it longer: vitc train {shlex.quote(str(run))} {length}."
    return ConfigError(f"The run in {run} is finished{result}.", f"{longer} {ELSEWHERE}")


def keep_sources(folder: Path, config: RunConfig) -> None:
    """Copy the files of custom classes into the run folder. Raises ConfigError, OSError."""
    for name, content in copies(config).items():
        place = folder / SOURCES
        if place.is_symlink():  # in a stranger's folder it could lead anywhere
            raise ConfigError(f"{place} is a link; a run keeps its sources in its own folder.")
        place.mkdir(exist_ok=True)
        files.write_atomically(place / name, content)


def make_place(path: Path, make: bool = True) -> None:
    """Create a run's folder, if `make`. Raises ConfigError: it holds anything but a run."""
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        there = path.iterdir() if path.exists() else ()
        names = {p.name for p in there if not p.name.startswith(files.TEMPORARY)}
    except OSError as error:
        reason = f"The run folder {path} cannot be made: {error.strerror}."
        raise ConfigError(reason, "Choose another --out.") from error
    found: dict[str, Any] = {}
    with contextlib.suppress(ConfigError):
        found = read_json(path / CONFIG)
    is_run = all(isinstance(found.get(k), dict) for k in ("model", "data", "optim", "train"))
    if names - {files.LOCK, CLAIM, TRIES} and not is_run:
        raise ConfigError(
            f"{path} is not empty and not a run folder; nothing in it was touched.",
            "Choose another --out.",
        )


class RunFolder:
    """The folder of one run, open for writing by this process alone; close it, or use `with`.

    `resumed`: an unfinished run of the same config was there; `finished`: this object wrote a
    summary with status done. With `writer=False` (the other processes of a
    distributed run) nothing is checked, locked or written. Every method that writes raises
    RunError where the disk refuses.
    """

    def __init__(self, path: Path, writer: bool = True) -> None:
        self.path = path
        self.writer = writer
        self.resumed = False
        self.finished = False
        self._lock: files.FolderLock | None = None

    @staticmethod
    def open(
        path: str | Path,
        config: RunConfig,
        *,
        overwrite: bool,
        writer: bool = True,
        legs: Legs = (),
        changes: bool = False,
    ) -> RunFolder:
        """Start a run of `config` in `path`, or resume the unfinished one that is there.

        `changes`: its learning rate, schedule and length may be others than so far; `legs`: the
        run's earlier ones, the last of which may be new. `overwrite` removes what a run wrote there
        and restarts. Raises ConfigError: the folder is in use by another process, holds something
        else, a finished run, or (naming the settings) a run of another config; RunError: the disk
        refuses.
        """
        folder = RunFolder(Path(path), writer)
        if not writer:
            return folder
        make_place(folder.path)
        folder._lock = files.FolderLock(folder.path)
        try:
            with _writing(folder.path):
                files.remove_leftovers(folder.path)
                if overwrite or not (folder.path / CONFIG).exists():
                    folder._begin(config)
                else:
                    folder._continue(config, legs, changes)
            if not folder._lock.held:
                folder.event("no file locks here: start no second process in this folder")
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are; may not exist yet."""
        return self.path / CHECKPOINTS

    def _begin(self, config: RunConfig) -> None:
        """Start a run, where an older one may have to go.

        In an order that leaves something whole if this process is killed: a shorter run without
        its later checkpoints, or one that still has its summary.
        """
        restarted = (self.path / CONFIG).exists()
        if self.checkpoints.exists():
            files.discard(self.checkpoints / LATEST)
            for path in list(self.checkpoints.iterdir()):
                if CHECKPOINT_NAME.fullmatch(path.name) or path.name in (START, BEST, GOOD):
                    files.discard(path)
            files.remove_leftovers(self.checkpoints)
        for name in (*PARTS, run_images.IMAGES, *RESULTS):
            (self.path / name).unlink(missing_ok=True)
        files.discard(self.path / TENSORBOARD)
        write_json(self.path / CONFIG, to_saved(config))
        keep_sources(self.path, config)
        self.event("restarted (--overwrite)" if restarted else "started")

    def _continue(self, config: RunConfig, legs: Legs, changes: bool) -> None:
        """Resume the run that is there. Raises ConfigError: it is another one, or finished."""
        try:
            old = read_config(self.path)
        except ConfigError as error:
            what = f"The run in {self.path} has a config of another version: {error.message}"
            raise ConfigError(what, ELSEWHERE) from error
        changed = differences(old, config)
        other = [c for c in changed if c.split(":")[0] not in HARMLESS]
        fixed = [c for c in other if not may_change(c.split(":")[0])]
        if fixed or (other and not changes):
            lines = "\n".join(f"  {c}" for c in (fixed if changes else other))
            within = f"{WITHIN} (vitc train {shlex.quote(str(self.path))} --optim.lr LR). "
            hint = f"{within if changes or not fixed else ''}{ELSEWHERE}"
            raise ConfigError(f"{self.path} holds a run of another config:\n{lines}", hint)
        if Run(self.path).status == "done":
            raise finished(self.path)
        keep_sources(self.path, config)
        if changes and legs != read_legs(self.path, old):
            if legs and legs[-1].until != last_step(self.checkpoints):
                raise ConfigError(f"{self.path} was trained further just now.", "Try it again.")
            write_legs(self.path, legs)
        (self.path / SUMMARY).unlink(missing_ok=True)  # of the part before this one
        if changed:  # so that `vitc train RUN` and `vitc eval RUN` find what moved
            write_json(self.path / CONFIG, to_saved(config))
        self.resumed = True
        self.event(f"continued{''.join(f'; {c}' for c in changed)}")

    def metric(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; it holds at least `kind` and `step`."""
        self._append(METRICS, files.to_json(line))

    def event(self, text: str) -> None:
        """Append one line with the time (UTC) to events.log; file names in it may hold anything."""
        text = printable(" | ".join(text.splitlines()))
        self._append(EVENTS, f"{datetime.now(UTC).isoformat(timespec='seconds')}  {text}")

    def _append(self, name: str, line: str) -> None:
        if self.writer:
            with _writing(self.path / name), open(self.path / name, "ab") as file:
                file.write(line.encode() + b"\n")

    def beat(self, values: Mapping[str, Any]) -> None:
        """Replace heartbeat.json, if the disk takes it."""
        with contextlib.suppress(OSError):
            write_json(self.path / HEARTBEAT, values)

    def drop_alternatives(self) -> None:
        """Remove the weights that a run could have returned to, once it has ended."""
        for name in (START, BEST):
            (self.checkpoints / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until the disk has metrics and events; called before a checkpoint is saved, so that
        the metrics always reach at least as far. Raises RunError: the disk refuses, or the folder
        was removed or moved, of which a new one would be a part only."""
        if not self.writer:
            return
        if not (self.path / CONFIG).exists():
            raise RunError(
                f"{self.path / CONFIG} is gone: the run folder was removed or moved meanwhile.",
                "If it was moved, resume there: vitc train FOLDER.",
            )
        with _writing(self.path):
            for name in (METRICS, EVENTS):
                if (self.path / name).exists():
                    files.sync_file(self.path / name)
            files.sync_folder(self.path)

    def cut_back(self, step: int) -> None:
        """Drop the metrics of later steps than `step`, and lines that a kill left half-written."""
        file = self.path / METRICS
        if not self.writer or not file.exists():
            return
        with _writing(file):
            old = file.read_bytes()
            lines = [(line, _metric(line)) for line in old.split(b"\n") if line]
            kept = [line for line, values in lines if values and values["step"] <= step]
            new = b"".join(line + b"\n" for line in kept)
            if new == old:
                return
            files.write_atomically(file, new)
        broken = sum(values is None for _, values in lines)
        self.event(
            f"metrics cut back to step {step}: {len(lines) - len(kept) - broken} later lines and "
            f"{broken} half-written ones dropped"
        )

    def write_data(
        self,
        values: Mapping[str, Any],
        data: DataSet | None = None,
        allow_changed_data: bool = False,
        earlier: Images | None = None,
    ) -> None:
        """Write data.json and, of `data`, images.npz; `earlier`: what initial weights were trained
        on. Raises DataError where the run began with other classes, or with other images and
        `allow_changed_data` is not set."""
        if not self.writer:
            return
        file, values, kept = self.path / DATA, dict(values), earlier
        images = None if data is None else run_images.images_to_keep(data)
        if file.exists():
            old = read_json(file, CheckpointError)
            changed = self._changed(old, values, data)
            if changed is not None and not allow_changed_data:
                raise DataError(
                    f"These are not the images that the run in {self.path} began with "
                    f"(their fingerprint differs): {changed}.",
                    f"Restore them, point --data.path at them, or add {run_images.ALLOW} to "
                    "continue with the images as they are; --overwrite starts over.",
                )
            if changed is not None:
                self.event(f"continued with changed data ({run_images.ALLOW}): {changed}")
                values["changed"] = [*old.get("changed", []), changed]
            kept = run_images.kept_images(self.path)
        if kept is not None and data is not None and images is not None:
            images = joined(kept, run_images.like(kept, data))
        with _writing(file):
            if images is not None:
                files.write_atomically(self.path / run_images.IMAGES, to_bytes(images))
            write_json(file, values)

    def _changed(
        self, old: Mapping[str, Any], values: Mapping[str, Any], data: DataSet | None
    ) -> str | None:
        """What changed in the images since the run began. Raises DataError: the classes."""
        for key in ("classes", "fingerprint"):
            if old.get(key) == files.plain(values.get(key)):
                continue
            if key == "classes" or data is None:
                raise DataError(
                    f"These are not the images that the run in {self.path} began with: "
                    f"their {key} differs ({short(repr(old.get(key)), 60)} then, "
                    f"{short(repr(values.get(key)), 60)} now).",
                    "Point --data.path at the first images, or choose another --out.",
                )
            return run_images.what_changed(self.path, old, data)
        return None

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json: the run has ended, with `status` done|diverged|interrupted|failed."""
        if not self.writer:
            return
        with _writing(self.path / SUMMARY):
            write_json(self.path / SUMMARY, values)
            (self.path / HEARTBEAT).unlink(missing_ok=True)
        self.finished = values["status"] == "done"

    def close(self) -> None:
        """Let go of the folder; may be called twice."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def last_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint in a folder; 0: there is none."""
    names = [p.name for p in checkpoints.glob("step_*")]
    with contextlib.suppress(OSError):
        names = [(checkpoints / LATEST).read_text(errors="replace").strip()]
    return max((int(m[1]) for m in map(CHECKPOINT_NAME.fullmatch, names) if m), default=0)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Free space or repair the disk, then repeat the command: it resumes from the last "
            "checkpoint.",
        ) from error


def _metric(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None where it is not one."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(values, dict) and type(values.get("step")) is int and "kind" in values
    return values if good else None


@dataclass(frozen=True)
class Run:
    """A run folder, read only: each file is read once, when it is first needed.

    Files that are not there raise ConfigError, damaged ones CheckpointError.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, as it is stored."""
        return read_json(self.path / CONFIG)

    @cached_property
    def data(self) -> dict[str, Any]:
        """data.json, with what preprocessing needs checked.

        Holds at least `classes` (strings), `mean` and `std` (one number a channel), `img_size`
        ([H, W]), `in_chans`, `fit` and `eval_crop`.
        """
        from vitc.data.preprocessing import preprocessing_problem

        values = read_json(self.path / DATA, CheckpointError)
        classes, keys = values.get("classes"), ("mean", "std", "img_size")
        needed = {**{k: values.get(k) for k in keys}, "crop": values.get("eval_crop")}
        needed["channels"] = "other"  # a run has any number of channels: grey images have one
        good = (
            isinstance(classes, list)
            and all(isinstance(name, str) for name in classes)
            and type(values.get("in_chans")) is int
            and values.get("fit") in ("crop", "pad", "squash")
            and None not in needed.values()
            and preprocessing_problem(needed, values["in_chans"]) is None
        )
        if not good:
            raise CheckpointError(
                f"{self.path / DATA} is damaged: the preprocessing of the images is incomplete."
            )
        return values

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty while the run has none."""
        file = self.path / SUMMARY
        return read_json(file, CheckpointError) if file.exists() else {}

    @property
    def status(self) -> str:
        """done | diverged | interrupted | failed; running while there is no summary."""
        return str(self.summary.get("status", "running"))

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def top1(self) -> float | None:
        """EMA weights, last epoch, validation, percent; None unless the run is done."""
        return self.summary.get("top1") if self.status == "done" else None

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in order, all or of one kind ("train", "eval").

        What was not finite is None. A half-written last line is left out, as the run may be
        writing it; any other damage raises CheckpointError.
        """
        return [line for line in self._metrics if kind is None or line["kind"] == kind]

    @cached_property
    def _metrics(self) -> list[dict[str, Any]]:
        path = self.path / METRICS
        if not path.exists():
            return []
        try:
            if path.stat().st_size > METRICS_LIMIT:
                raise CheckpointError(f"{path} is larger than {METRICS_LIMIT >> 30} GiB.")
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        found = []
        for number, line in enumerate(lines, 1):
            values = _metric(line)
            if values is not None:
                found.append(values)
            elif line and number < len(lines):  # the last piece may lack its end
                raise CheckpointError(f"{path} is damaged at line {number}.")
        return found

    @property
    def places(self) -> list[tuple[str, str]]:
        """(launcher, host) of each try of a study's trial; those of 0.1 have it in events.log."""
        file = self.path / EVENTS
        found = PLACED.findall(file.read_text(errors="replace")) if file.is_file() else []
        tries = self.path / TRIES
        entries = read_json(tries).get("tries", []) if tries.is_file() else []
        return list(dict.fromkeys([*found, *((e["engine"], e["host"]) for e in entries)]))
