"""A trained model with all that its answers depend on: weights, classes, preprocessing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitc.config import RunConfig, read_config
from vitc.data.augment.device import finish
from vitc.data.preprocessing import Preprocessing
from vitc.deploy.export.formats import format_of
from vitc.deploy.saved import Saved, load_pretrained
from vitc.errors import CheckpointError, ConfigError
from vitc.resolve import PREDICTS, check_is
from vitc.training.device import pick_device
from vitc.training.evaluate import load_model, not_finite
from vitc.training.measured import Trained

LONGEST_PLACE = 40  # characters of a folder in a title


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model in evaluation mode on `device`, with its K classes and its preprocessing.

    `config`: of the run, or the settings that a saved model implies. `notes`: what is uncertain
    about a saved model. `trained`: whether its predictions mean anything.
    """

    name: str
    model: nn.Module
    device: torch.device
    config: RunConfig
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: str = "ema"
    notes: tuple[str, ...] = ()
    trained: bool = True
    run: Path | None = None
    """The run's folder; None: a saved model."""
    record: Mapping[str, Any] | None = None
    """Its data.json."""
    folds: tuple[Path, ...] = ()
    """The folders of the runs that the model is the mean of."""

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str = "auto", weights: str = "ema"
    ) -> Classifier:
        """That of a run folder (its last checkpoint), a folder of `save_pretrained`, a file of
        `vitc export`, or the mean of all runs of a folder of folds.

        Raises ConfigError (no such folder, unknown device or weights, a saved model that lacks
        what prediction needs, a missing extra), CheckpointError (none, or damaged).
        """
        if weights not in ("ema", "raw"):
            raise ConfigError(f"weights is {weights!r}; it must be 'ema' or 'raw'.")
        folder, where = Path(path), pick_device(device)
        what = check_is(folder, *PREDICTS)
        if what == "folds":
            from vitc.deploy.folds import Folds

            runs = Folds.read(folder).finished()
            return _mean_of(folder, [cls.load(run, device, weights) for run in runs])
        if what != "run" and weights != "ema":
            raise ConfigError("weights 'raw' has no effect: a saved model holds one set.")
        if what == "saved":
            model, saved = load_pretrained(folder)
            return _of_saved(saved, model.to(where), where, folder)
        if what == "exported":
            return _exported(folder, device)
        model, record = load_model(folder, weights)
        config = read_config(folder)
        average = _average(config, weights)
        if config.train.channels_last:  # which was faster in training; in rounding alone another
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            name=f"{config.model.name} of {_place(folder)}, {average or 'last'} weights",
            model=model.to(where),
            device=where,
            config=config,
            classes=tuple(record["classes"]),
            preprocessing=Preprocessing.from_run(record),
            weights=weights,
            run=folder,
            record=record,
        )

    @property
    def average(self) -> str | None:
        """Which average of the run's weights it has; empty: the last weights; None: of no run."""
        return None if self.run is None else _average(self.config, self.weights)

    @property
    def training(self) -> Trained:
        """What is known of its training images."""
        return Trained(self.config, self.classes, self.run, self.record, self.folds)

    @property
    def in_chans(self) -> int:
        return self.config.model.in_chans

    def prepare(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels (H, W, C) of any size as the model's uint8 image (C, h, w)."""
        return self.preprocessing.prepare(pixels)

    def normalise(self, images: Tensor) -> Tensor:
        """Prepared images, uint8 (B, C, h, w), as the model's input on its device."""
        p = self.preprocessing
        last = self.config.train.channels_last
        return finish(images.to(self.device), None, p.mean, p.std, channels_last=last)

    def logits(self, images: Tensor) -> Tensor:
        """Prepared images, uint8 (B, C, h, w) -> float32 (B, K) on the device.

        Computed in fp32, whatever the run trained in, so that an image's answer does not depend
        on the machine beyond rounding. Raises CheckpointError: they are not finite.
        """
        with torch.inference_mode():
            found: Tensor = self.model(self.normalise(images)).float()
        self.check_finite(found)
        return found

    def check_finite(self, logits: Tensor) -> None:
        """Raises CheckpointError: the model's answers mean nothing."""
        if not bool(logits.isfinite().all()):
            where = not_finite(self.model.state_dict()) or "the activations overflow"
            raise CheckpointError(
                f"The outputs of {self.name} are not finite: {where}.",
                "Use another checkpoint; the weights are those of a diverged run, or damaged.",
            )

    def probabilities(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        """Prepared images, uint8 (C, h, w) each -> (N, K)."""
        if not images:
            return np.zeros((0, len(self.classes)), np.float32)
        found: NDArray[np.float32] = self.logits(torch.stack(list(images))).softmax(1).cpu().numpy()
        return found

    def features(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        """Prepared images, uint8 (C, h, w) each -> (N, D), what the head reads.

        Raises ConfigError: an exported graph, a mean of models or a custom model without
        `forward_features` and `forward_head`.
        """
        model: Any = self.model
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            raise ConfigError(
                f"{self.name} gives classes alone, no features.",
                "Features come from a run or saved model of the zoo, timm or torchvision.",
            )
        if not images:
            return np.zeros((0, 0), np.float32)
        with torch.inference_mode():
            inside = model.forward_features(self.normalise(torch.stack(list(images))))
            found: NDArray[np.float32] = model.forward_head(inside, pre_logits=True).float()
        return found.cpu().numpy()  # type: ignore[attr-defined, no-any-return]


class Ensemble(nn.Module):
    """The logarithm of the mean of the probabilities that several models give."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)"""
        given = torch.stack([model(images).float().log_softmax(1) for model in self.models])
        return given.logsumexp(0) - math.log(len(self.models))


def _average(config: RunConfig, weights: str) -> str:
    return config.optim.average if weights == "ema" else ""


def _mean_of(folder: Path, parts: Sequence[Classifier]) -> Classifier:
    config = parts[0].config  # no fold of which is held out from all models
    return replace(
        parts[0],
        name=f"the mean of {len(parts)} models in {_place(folder)}",
        model=Ensemble([part.model for part in parts]).eval(),
        config=replace(config, data=replace(config.data, folds=None, fold=1)),
        run=None,
        record=None,
        folds=tuple(part.run for part in parts if part.run is not None),
    )


def _exported(file: Path, device: str) -> Classifier:
    form = format_of(file)
    if form.graph and device not in ("auto", "cpu"):
        raise ConfigError(f"{file} runs on the CPU; --device {device} has no effect.")
    where = torch.device("cpu") if form.graph else pick_device(device)
    record, model = form.open(file, torch.get_num_threads())
    found = _of_saved(record.saved, model.to(where), where, file)
    found = replace(found, name=f"the exported model {_place(file)}", weights=record.weights)
    if not form.graph or record.input == "tensor":
        return found
    p = found.preprocessing  # the graph normalises: pixels reach it as they are
    as_pixels = replace(p, mean=(0.0,) * len(p.mean), std=(1 / 255,) * len(p.std))
    return replace(found, preprocessing=as_pixels)


def _of_saved(saved: Saved, model: nn.Module, device: torch.device, place: Path) -> Classifier:
    p = saved.preprocessing
    if p is None or (p.crop is None and p.fit == "crop"):
        raise ConfigError(
            f"The preprocessing of the model in {place} is not known.",
            "Save it again with preprocessing=..., as documented where its weights come from.",
        )
    if p.channels == "bgr":
        raise ConfigError(
            f"The model in {place} takes channels in the order blue, green, red; images here "
            "are red, green, blue.",
            "Convert its weights with vitc convert, which reverses the first layer's channels.",
        )
    if saved.num_classes == 0:
        raise ConfigError(f"The model in {place} has no head: it predicts no classes.")
    notes, classes = [], saved.classes
    if classes is None:
        classes = tuple(f"class {i}" for i in range(saved.num_classes))
        notes.append("The saved model has no class names: its classes are numbered.")
    if p.interpolation != "bilinear":
        how = "unknown" if p.interpolation is None else repr(p.interpolation[:20])
        notes.append(f"The saved model's interpolation is {how}; here it is bilinear.")
    config = RunConfig(model=saved.config)
    crop = config.data.eval_crop if p.crop is None else p.crop
    data = replace(config.data, fit=p.fit, eval_crop=crop)
    return Classifier(
        name=f"the saved model {_place(place)}",
        model=model,
        device=device,
        config=replace(config, data=data),
        classes=classes,
        preprocessing=replace(p, img_size=p.img_size or saved.config.size),
        notes=tuple(notes),
    )


def _place(folder: Path) -> str:
    """A folder's name with as much of its path as a title has room for."""
    text = str(folder)
    return text if len(text) <= LONGEST_PLACE else f"…{text[1 - LONGEST_PLACE :]}"
