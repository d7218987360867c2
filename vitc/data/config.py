"""Where the images come from and what happens to them, as values: no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

SOURCES = ("fashion", "cifar10", "cifar100", "idx", "folder", "synthetic")
NEEDS_PATH = ("cifar10", "cifar100", "idx", "folder")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What a training image goes through; evaluation sees none of it (paper section 5.4)."""

    crop: Literal["none", "shift", "random_resized"] = "none"
    """none: as evaluation; shift: pad and cut back at random; random_resized: Inception's crop."""
    shift_pixels: int = 4
    """With crop shift: the largest shift, in pixels of the final image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """With crop random_resized: the cut's share of the image area, from-to."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """With crop random_resized: the cut's aspect ratio (width / height), from-to."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup; 0: no mixup. With cutmix_alpha too, a coin decides (paper 0.8)."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix; 0: no CutMix (paper 1.0)."""
    label_smoothing: float = 0.0
    """Mass spread evenly over all classes, applied before mixing (paper 0.1)."""

    def problems(self) -> list[str]:
        found = []
        default = {f.name: f.default for f in fields(AugmentConfig)}
        for name, crop in (("shift_pixels", "shift"), ("scale", "random_resized"),
                           ("ratio", "random_resized")):  # fmt: skip
            if self.crop != crop and getattr(self, name) != default[name]:
                found.append(
                    f"data.augment.{name} has no effect with data.augment.crop {self.crop!r}; "
                    f"it needs --data.augment.crop {crop}."
                )
        if self.shift_pixels < 0:
            found.append(f"data.augment.shift_pixels {self.shift_pixels} must not be negative.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            found.append(f"data.augment.scale {self.scale} must be 0 < from <= to <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            found.append(f"data.augment.ratio {self.ratio} must be 0 < from <= to.")
        for name in ("flip", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"data.augment.{name} {getattr(self, name)} must be in [0, 1].")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                found.append(f"data.augment.{name} {getattr(self, name)} must not be negative.")
        return found


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One data set: its source, how it is split, and how an image reaches the model's size."""

    source: Literal["fashion", "cifar10", "cifar100", "idx", "folder", "synthetic"] = "fashion"
    """fashion is shipped inside the package; synthetic is made; the others need path."""
    path: str | None = None
    """Folder of the data set; None for fashion and synthetic."""
    val_fraction: float = 0.15
    """Share of the training images held out for validation where the source has no split."""
    test_fraction: float = 0.15
    """Share held out for the test, read once, where the source has neither a test split nor its
    own validation split; 0: none."""
    split_seed: int = 0
    """Seed of that hold-out: the same for every model, so that they see the same images."""
    group: str | None = None
    """Regular expression on the relative path (folder only); images whose first group (or whole
    match) agrees stay on one side of a split: bursts, patients, frames of one video."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How another aspect ratio or size reaches img_size: cut the middle, pad, or distort."""
    eval_crop: float = 0.875
    """With fit crop: share of the shorter side that evaluation keeps (224 of 256)."""
    balance: Literal["none", "sqrt", "full"] = "none"
    """Sampling of rare classes: as they are, by square root of their counts, or all alike."""
    bad_files: Literal["stop", "skip"] = "stop"
    """A file that cannot be decoded stops the run when met, or is replaced, named and counted."""
    max_train: int | None = None
    """Use only so many training images, class-balanced and seeded; None: all."""
    resident: Literal["auto", "on", "off"] = "auto"
    """Keep the whole set on the device as one uint8 tensor; auto: when it fits a quarter of it."""
    workers: int | None = None
    """Loader processes; None: one a core but at most 8, and 0 when resident."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean in [0, 1]; None: the source's own."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation in [0, 1]; None: the source's own."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training-time augmentation."""

    def problems(self) -> list[str]:
        found = self.augment.problems()
        if self.source in NEEDS_PATH and self.path is None:
            found.append(f"data.source {self.source!r} needs a folder: --data.path DIR.")
        if self.source not in NEEDS_PATH and self.path is not None:
            found.append(f"data.path has no effect with data.source {self.source!r}.")
        if self.group is not None and self.source != "folder":
            found.append(f"data.group has no effect with data.source {self.source!r}.")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"data.{name} {getattr(self, name)} must be in [0, 1).")
        if self.val_fraction + self.test_fraction >= 1:
            found.append(
                f"data.val_fraction {self.val_fraction} and data.test_fraction "
                f"{self.test_fraction} leave nothing to train on; their sum must be below 1."
            )
        if not 0 < self.eval_crop <= 1:
            found.append(f"data.eval_crop {self.eval_crop} must be in (0, 1].")
        if self.eval_crop != 0.875 and self.fit != "crop":
            found.append(f"data.eval_crop has no effect with data.fit {self.fit!r}.")
        if self.workers is not None and self.workers < 0:
            found.append(f"data.workers {self.workers} must not be negative.")
        if self.workers and self.resident == "on":
            found.append("data.workers has no effect with data.resident on.")
        if self.max_train is not None and self.max_train < 1:
            found.append(f"data.max_train {self.max_train} must be at least 1.")
        if (self.mean is None) != (self.std is None):
            found.append("data.mean and data.std go together: give both or neither.")
        if self.std is not None and min(self.std, default=0) <= 0:
            found.append(f"data.std {self.std} must be above 0.")
        return found
