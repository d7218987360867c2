"""Which preprocessing does a model expect? One record for runs, weights files and saved models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vitc.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Channels = Literal["rgb", "bgr", "gray", "other"]
Fit = Literal["crop", "pad", "squash"]
CHANNEL_COUNTS = {"rgb": 3, "bgr": 3, "gray": 1, "other": None}
KEYS = ("mean", "std", "channels", "interpolation", "crop", "img_size")
LARGEST_SIDE = 4096
# Of ImageNet's training images in RGB, as the field has used them since Torch7's fb.resnet.torch.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared for the weights of a model."""

    mean: tuple[float, ...]
    """One number a channel, of pixels in [0, 1], in the order of `channels`."""
    std: tuple[float, ...]
    """Standard deviation, likewise."""
    channels: Channels = "rgb"
    interpolation: str | None = None
    """How images were resized (bilinear, bicubic); None: unknown."""
    crop: float | None = None
    """Share of the shorter side that evaluation keeps (224 of 256: 0.875); None: unknown."""
    img_size: tuple[int, int] | None = None
    """(height, width) in pixels; None: unknown."""
    fit: Fit = "crop"
    """How an image is brought to img_size: crop, pad or squash."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON values stored with weights; `fit` is stored separately."""
        values = asdict(self)
        return {k: list(values[k]) if isinstance(values[k], tuple) else values[k] for k in KEYS}

    @classmethod
    def from_dict(cls, values: object, fit: Fit = "crop") -> Preprocessing:
        """The reverse of `to_dict`; only mean and std are required.

        Raises CheckpointError where a value is invalid.
        """
        problem = preprocessing_problem(values)
        if problem is not None or not isinstance(values, Mapping):
            raise CheckpointError(
                f"The preprocessing stored with the weights is damaged: {problem}."
            )
        known: dict[str, Any]
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if known.get("img_size") is not None:
            known["img_size"] = tuple(map(int, known["img_size"]))
        return cls(**known, fit=fit)

    @classmethod
    def from_run(cls, record: Mapping[str, Any]) -> Preprocessing:
        """That of a run, from its data.json as `runs.folder.Run.data` returns it."""
        fit: Fit = record["fit"]
        height, width = record["img_size"]
        channels: dict[int, Channels] = {1: "gray", 3: "rgb"}
        return cls(
            mean=tuple(record["mean"]),
            std=tuple(record["std"]),
            channels=channels.get(record["in_chans"], "other"),
            interpolation="bilinear",
            crop=record["eval_crop"] if fit == "crop" else None,
            img_size=(height, width),
            fit=fit,
        )

    def prepare(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels (H, W, C) of any size as a uint8 tensor (C, *img_size), as in evaluation."""
        from vitc.data.augment.crop import eval_image

        if self.img_size is None:
            raise ValueError("the preprocessing has no img_size")
        return eval_image(pixels, self.img_size, self.fit, 1.0 if self.crop is None else self.crop)

    def reversed(self) -> Preprocessing:
        """The same with the channels in reverse order: BGR for RGB, RGB for BGR."""
        other: Channels = "rgb" if self.channels == "bgr" else "bgr"
        return replace(self, mean=self.mean[::-1], std=self.std[::-1], channels=other)

    def describe(self) -> str:
        """One line for people."""
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        crop = "unknown crop" if self.crop is None else f"{self.crop:.3g} of the shorter side"
        size = "unknown size"
        if self.img_size is not None:
            size = f"{self.img_size[0]}x{self.img_size[1]} pixels"
        return (
            f"{self.channels.upper()}, mean {mean}, std {std}, "
            f"{self.interpolation or 'unknown interpolation'}, {crop}, {size}"
        )


def preprocessing_problem(
    values: object, in_chans: int | None = None, complete: bool = False
) -> str | None:
    """What is invalid in stored preprocessing; None: nothing. `complete`: every key is required."""
    if not isinstance(values, Mapping):
        return "it is not a table"
    unknown = sorted(str(k)[:60] for k in values if k not in KEYS)
    missing = [k for k in (KEYS if complete else KEYS[:2]) if k not in values]
    if unknown or missing:
        return f"{unknown[0]!r} is unknown" if unknown else f"{missing[0]!r} is missing"
    mean, std = values["mean"], values["std"]
    for name, numbers in (("mean", mean), ("std", std)):
        count = len(mean) if in_chans is None and isinstance(mean, list | tuple) else in_chans
        if not _numbers(numbers) or len(numbers) != count:
            return f"{name} is not {count} numbers, one a channel"
    if min(std) <= 0:
        return "std is not above 0"
    channels = values.get("channels", "rgb")
    if channels not in get_args(Channels):
        return f"channels is none of {', '.join(get_args(Channels))}"
    if in_chans is not None and CHANNEL_COUNTS[channels] not in (in_chans, None):
        return f"channels is {channels!r}, but the model takes {in_chans}"
    interpolation, crop, size = (values.get(k) for k in KEYS[3:])
    if not isinstance(interpolation, str | None):
        return "interpolation is not a string"
    if crop is not None and not (_numbers([crop]) and 0 < crop <= 1):
        return "crop is not in (0, 1]"
    if size is not None and not (
        _numbers(size)
        and len(size) == 2
        and all(side == int(side) and 0 < side <= LARGEST_SIDE for side in size)
    ):
        return f"img_size is not [height, width] of at most {LARGEST_SIDE} pixels"
    return None


def _numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    listed = isinstance(values, list | tuple) and len(values) > 0
    return listed and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)
