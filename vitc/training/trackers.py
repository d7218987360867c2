"""Where else is a run followed, besides metrics.jsonl? `train.track`, a library of the user's.

A tracker is one class and one entry in `TRACKERS`. It gets the numbers of every line of
metrics.jsonl by name (`train/loss`, `eval/top1`, `watch/attention_logit/3`) and the run's settings.
A resumed run continues its tracker's run: `tracker.json` in the run folder has its id. Of several
processes the first one tracks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vitc.errors import ConfigError
from vitc.files import read_json, write_json
from vitc.machine import install_line
from vitc.runs.folder import TENSORBOARD, TRACKER
from vitc.wording import short

NOT_TRACKED = ("kind", "step")


class Tracker(Protocol):
    """Of one run in one process."""

    package: str
    """What pip installs."""
    remedy: str
    """What to do where it cannot start a run."""

    def __init__(self, run: Path, name: str, settings: Mapping[str, Any], kept: str | None) -> None:
        """kept: the id of the tracker's run that is to be continued; None: start one."""

    @property
    def id(self) -> str:
        """By which its run can be continued."""

    def start(self, step: int) -> None:
        """The next values are of steps after `step`; later ones of an earlier process are void."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers by name."""

    def close(self, status: str) -> None:
        """The run has ended."""


class TensorBoard:
    """Event files in `RUN/tensorboard`: tensorboard --logdir runs."""

    package = "tensorboard"
    remedy = "Reinstall it: pip install --upgrade tensorboard. Or leave out --train.track."

    def __init__(self, run: Path, name: str, settings: Mapping[str, Any], kept: str | None) -> None:
        self.board = importlib.import_module("torch.utils.tensorboard")
        self.folder, self.settings = run / TENSORBOARD, settings
        self.writer: Any = None
        self.begun = kept is not None

    @property
    def id(self) -> str:
        return self.folder.name

    def start(self, step: int) -> None:
        if self.writer is not None:  # rolled back
            self.writer.close()
        purge = step + 1 if self.begun else None
        self.writer = self.board.SummaryWriter(str(self.folder), purge_step=purge)
        if not self.begun:
            self.begun = True
            lines = (f"    {name}: {value}" for name, value in self.settings.items())
            self.writer.add_text("settings", "\n".join(lines), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, status: str) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in `RUN/wandb`."""

    package = "wandb"
    remedy = "Without a network: WANDB_MODE=offline, or --train.track tensorboard."

    def __init__(self, run: Path, name: str, settings: Mapping[str, Any], kept: str | None) -> None:
        wandb = importlib.import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vitc"),
            name=name,
            dir=str(run),
            config=dict(settings),
            id=kept,
            resume="allow" if kept else None,
        )

    @property
    def id(self) -> str:
        return str(self.run.id)

    def start(self, step: int) -> None:
        """W&B has no way back: steps that are trained again are logged again, as `step` shows."""
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "done" else 1)


class Mlflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in `RUN/mlflow`."""

    package = "mlflow"
    remedy = (
        "Without its server: unset MLFLOW_TRACKING_URI, which keeps the run in RUN/mlflow, or "
        "--train.track tensorboard."
    )
    STATUS: Mapping[str, str] = {"done": "FINISHED", "interrupted": "KILLED"}

    def __init__(self, run: Path, name: str, settings: Mapping[str, Any], kept: str | None) -> None:
        # Its files are in maintenance, but need no database; newer versions ask for a yes.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        tracking = importlib.import_module("mlflow.tracking")
        entities = importlib.import_module("mlflow.entities")
        self.metric = entities.Metric
        place = os.environ.get("MLFLOW_TRACKING_URI") or (run / "mlflow").resolve().as_uri()
        self.client = tracking.MlflowClient(tracking_uri=place)
        if kept is not None:
            self.run_id = kept
            self.client.set_terminated(kept, "RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vitc")
        known = self.client.get_experiment_by_name(experiment)
        found = known.experiment_id if known else self.client.create_experiment(experiment)
        self.run_id = self.client.create_run(found, run_name=name).info.run_id
        parameters = [entities.Param(k, short(str(v), 500)) for k, v in settings.items()]
        for i in range(0, len(parameters), 100):  # of one request
            self.client.log_batch(self.run_id, params=parameters[i : i + 100])

    @property
    def id(self) -> str:
        return str(self.run_id)

    def start(self, step: int) -> None:
        """MLflow has no way back: steps that are trained again have two values."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, self.STATUS.get(status, "FAILED"))


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def check_installed(kind: str) -> None:
    """Raises ConfigError: the tracker's library is not installed."""
    if kind == "none" or importlib.util.find_spec(TRACKERS[kind].package) is not None:
        return
    package = TRACKERS[kind].package
    raise ConfigError(
        f"train.track {kind} needs {package}, which is not installed.",
        f"Install it: pip install {package} (all trackers: {install_line('track')}).",
    )


def open_tracker(kind: str, run: Path, name: str, settings: Mapping[str, Any]) -> Followed | None:
    """The tracker of a run, which continues the one it had; None: kind "none".

    Raises ConfigError: its library refuses, with what to do.
    """
    if kind == "none":
        return None
    record, cls = run / TRACKER, TRACKERS[kind]
    values = read_json(record) if record.is_file() else {}
    kept = values.get("id") if values.get("tracker") == kind else None
    try:
        tracker = cls(run, name, settings, kept)
    except Exception as error:  # whatever a library or a service has against it
        raise ConfigError(
            f"{cls.package} cannot start a run: {short(str(error), 300)}.",
            cls.remedy,
        ) from error
    write_json(record, {"tracker": kind, "id": tracker.id})
    return Followed(tracker)


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of metrics.jsonl by name; lists by their positions."""
    kind = line["kind"]

    def each() -> Iterator[tuple[str, Any]]:
        for name, value in line.items():
            if name in NOT_TRACKED:
                continue
            if isinstance(value, Sequence) and not isinstance(value, str):
                for i, entry in enumerate(value):
                    yield f"{kind}/{name}/{i}", entry
            else:
                yield f"{kind}/{name}", value

    numbers = ((name, value) for name, value in each() if type(value) in (int, float))
    return {name: float(value) for name, value in numbers if math.isfinite(value)}


class Followed:
    """A tracker that stops no run: what it raises is a note, once, and it is left out."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker: Tracker | None = tracker
        self.lost = ""

    def start(self, step: int) -> None:
        with self._trying():
            if self.tracker is not None:
                self.tracker.start(step)

    def log(self, line: Mapping[str, Any]) -> None:
        with self._trying():
            if self.tracker is not None:
                self.tracker.log(line["step"], scalars(line))

    def close(self, status: str) -> None:
        with self._trying():
            if self.tracker is not None:
                self.tracker.close(status)

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a service that is down, a full disk of it
            self.tracker, self.lost = None, f"{type(error).__name__}: {short(str(error), 200)}"
