"""Which engine runs the trials, and how large a place each gets: --engine and its flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vitc.errors import ConfigError
from vitc.study.launch import Engine, LocalEngine, default_workers
from vitc.study.launch_ray import RayEngine
from vitc.study.launch_slurm import SlurmEngine

FLAGS: dict[str, tuple[str, ...]] = {
    "workers": ("local",),
    "ray_address": ("ray",),
    "gpus_per_trial": ("ray", "slurm"),
    "cpus_per_trial": ("ray", "slurm"),
    "nodes_per_trial": ("slurm",),
    "pack": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "qos": ("slurm",),
    "constraint": ("slurm",),
    "max_jobs": ("slurm",),
    "hours": ("slurm",),
    "slurm_cluster": ("slurm",),
}
"""Flag -> the engines with which it has an effect."""
SBATCH = ("partition", "account", "qos", "constraint")  # handed on as they are


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The flags of --engine; None: not given. `engine()` makes the engine of them."""

    engine: str = "local"
    workers: int | None = None
    ray_address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: int | None = None
    nodes_per_trial: int | None = None
    pack: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    max_jobs: int | None = None
    hours: float | None = None
    slurm_cluster: str | None = None

    def checked(self) -> Placement:
        """Itself, or a ConfigError that lists every flag without effect and every bad value."""
        found = [
            f"--{name.replace('_', '-')} has no effect with --engine {self.engine}; "
            f"it is for: {', '.join(engines)}."
            for name, engines in FLAGS.items()
            if getattr(self, name) is not None and self.engine not in engines
        ]
        gpus = self.gpus_per_trial
        if gpus is not None and (not math.isfinite(gpus) or gpus < 0):
            found.append(f"--gpus-per-trial {gpus:g} must not be negative.")
        elif gpus is not None and gpus != int(gpus):
            if self.engine == "slurm":
                found.append(
                    f"--gpus-per-trial {gpus:g}: SLURM hands out whole GPUs; share one "
                    "with --engine ray."
                )
            elif gpus > 1:
                found.append(
                    f"--gpus-per-trial {gpus:g} must be a share of one GPU or a whole number."
                )
        if self.hours is not None and not 0 < self.hours < math.inf:
            found.append(f"--hours {self.hours:g} must be above 0.")
        if found:
            raise ConfigError("\n".join(found))
        return self

    def device(self, asked: str | None) -> str | None:
        """The device of the trials, elsewhere: told by --gpus-per-trial, or by train.device.

        None for this machine, which can be looked at. Raises ConfigError where the two disagree.
        """
        if self.engine == "local":
            return asked
        gpus = self.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if asked == "cuda" else 0.0
        told = "cuda" if gpus else "cpu"
        if asked not in (None, "auto", told):
            raise ConfigError(
                f"--train.device {asked} and {gpus:g} GPUs a trial do not go together.",
                "Leave --train.device out: --gpus-per-trial decides.",
            )
        return told

    def make(self, device: str) -> Engine:
        """The engine, for trials on this device ("cpu" | "cuda" | "mps"). Raises ConfigError."""
        self.checked()
        if self.engine == "local":
            return LocalEngine(workers=self.workers or default_workers())
        gpus = self.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if device == "cuda" else 0.0
        if bool(gpus) != (device == "cuda"):
            raise ConfigError(
                f"The trials are for {device}, but get {gpus:g} GPUs each.",
                "Give --gpus-per-trial as the study was begun, or another --out.",
            )
        if self.engine == "ray":
            return RayEngine(
                address=self.ray_address or "", gpus=gpus, cpus=self.cpus_per_trial or 1
            )
        given: dict[str, Any] = {
            "nodes": self.nodes_per_trial,
            "pack": self.pack,
            "max_jobs": self.max_jobs,
            "hours": self.hours,
            "cluster": self.slurm_cluster,
        }
        options = {name: getattr(self, name) for name in SBATCH if getattr(self, name) is not None}
        return SlurmEngine(
            gpus=int(gpus),
            cpus=self.cpus_per_trial or 1,
            options=options,
            **{name: value for name, value in given.items() if value is not None},
        )
