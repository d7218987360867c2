"""Where the images come from and what happens to them, as values: no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from vitc.data.split_words import parse_splits
from vitc.errors import ConfigError
from vitc.settings import SOME, out_of_bounds, setting


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What a training image goes through; evaluation sees none of it (paper section 5.4)."""

    crop: Literal["none", "shift", "random_resized"] = "none"
    """none: as evaluation; shift: pad and cut back at random; random_resized: Inception's crop."""
    shift_pixels: int = setting(4, at_least=0, at_most=1024, needs=("crop", "shift"))
    """With crop shift: the largest shift, in pixels of the final image."""
    scale: tuple[float, float] = setting((0.08, 1.0), needs=("crop", "random_resized"))
    """With crop random_resized: the cut's share of the image area, from-to."""
    ratio: tuple[float, float] = setting((0.75, 4 / 3), needs=("crop", "random_resized"))
    """With crop random_resized: the cut's aspect ratio (width / height), from-to."""
    flip: float = setting(0.5, at_least=0, at_most=1)
    """Probability of a horizontal flip."""
    policy: Literal["none", "autoaugment", "v0", "randaugment", "trivial", "three"] = "none"
    """autoaugment: ImageNet's of its paper; v0: the EfficientNet code's, which pycls and so the
    paper use; randaugment: timm's "inc1"; trivial: TrivialAugment Wide; three: 3-Augment."""
    rand_ops: int = setting(2, at_least=1, at_most=100, needs=("policy", "randaugment"))
    """With policy randaugment: operations in a row on one image (DeiT 2)."""
    rand_magnitude: float = setting(9.0, at_least=0, at_most=10, needs=("policy", "randaugment"))
    """With policy randaugment: strength, 0 to 10, timm's scale (DeiT 9)."""
    rand_std: float = setting(0.5, at_least=0, at_most=100, needs=("policy", "randaugment"))
    """With policy randaugment: standard deviation of each operation's magnitude around
    rand_magnitude, cut to 0-10; timm's mstd (DeiT 0.5). 0: always rand_magnitude."""
    rand_prob: float = setting(0.5, at_least=0, at_most=1, needs=("policy", "randaugment"))
    """With policy randaugment: probability of each of the operations (timm and DeiT 0.5)."""
    jitter: tuple[float, float, float] = setting((0.0, 0.0, 0.0), at_least=0, at_most=100)
    """Colour jitter after the policy, in a random order: brightness, contrast, saturation are
    multiplied by a factor uniform in max(0, 1 - x) to 1 + x (3-Augment 0.3 0.3 0.3)."""
    lighting: float = setting(0.0, at_least=0, at_most=100)
    """AlexNet's PCA lighting: standard deviation of the three coefficients (pycls 0.1)."""
    erase: float = setting(0.0, at_least=0, at_most=1)
    """Probability of random erasing, after normalisation (DeiT 0.25)."""
    erase_fill: Literal["noise", "mean"] = setting("noise", needs=("erase", SOME))
    """With erase: normal noise for each pixel and channel, or the data's mean colour."""
    erase_area: tuple[float, float] = setting((0.02, 1 / 3), needs=("erase", SOME))
    """With erase: the erased share of the image, from-to."""
    erase_ratio: tuple[float, float] = setting((0.3, 1 / 0.3), needs=("erase", SOME))
    """With erase: height / width of what is erased, from-to."""
    repeats: int = setting(1, at_least=1, at_most=1000)
    """Repeated augmentation: copies of an image in an epoch, each with its own random parameters.
    An epoch keeps its number of steps, so it shows 1 / repeats of the images (DeiT 3)."""
    mix_per: Literal["micro", "sample"] = setting(
        "micro", needs=("mixup_alpha or cutmix_alpha", SOME)
    )
    """With mixup or CutMix: one coin, lambda and box for a micro-batch (the paper), or for each
    image (timm's elem mode)."""
    mixup_alpha: float = setting(0.0, at_least=0, at_most=1000)
    """Beta parameter of mixup; 0: no mixup. With cutmix_alpha too, a coin decides (paper 0.8)."""
    cutmix_alpha: float = setting(0.0, at_least=0, at_most=1000)
    """Beta parameter of CutMix; 0: no CutMix (paper 1.0)."""
    mix_prob: float = setting(
        1.0, at_least=0, at_most=1, needs=("mixup_alpha or cutmix_alpha", SOME)
    )
    """Share of micro-batches (mix_per sample: of images) that are mixed; timm's mixup_prob."""
    label_smoothing: float = setting(0.0, at_least=0, at_most=1)
    """Mass spread evenly over all classes, applied before mixing (paper 0.1)."""

    @property
    def alters(self) -> bool:
        """Whether operations of ops.py change the images: a policy or colour jitter."""
        return self.policy != "none" or any(self.jitter)

    @property
    def mixes(self) -> bool:
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def problems(self) -> list[str]:
        found = out_of_bounds(self, "data.augment")
        for name, most in (("scale", 1), ("erase_area", 1), ("ratio", inf), ("erase_ratio", inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = " <= 1" if most == 1 else ""
                found.append(f"data.augment.{name} {(low, high)} must be 0 < from <= to{limit}.")
        if self.policy == "randaugment" and self.rand_prob == 0:
            found.append("data.augment.rand_prob 0 leaves data.augment.policy without effect.")
        random = (self.crop != "none", 0 < self.flip < 1, self.alters, self.lighting, self.erase)
        if self.repeats > 1 and not any(random):
            found.append(
                f"data.augment.repeats {self.repeats} only shows fewer images: nothing random "
                "would make the copies differ; it needs a crop, a flip or a policy."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One data set: its source, how it is split, and how an image reaches the model's size."""

    source: str = "fashion"
    """fashion is shipped inside the package; synthetic is made; the others need path
    (docs/sources.md)."""
    path: str | None = None
    """Folder or file of the data set, or a pattern of files; None for fashion and synthetic."""
    path_sha256: str = ""
    """With source custom: SHA-256 of the file that defines the class; filled in when it is
    named."""
    image_column: str | None = None
    """With source parquet or list: the column of images or paths; None: found by its name and
    type."""
    label_column: str | None = None
    """With source parquet or list: the column of labels; with tar: the key in .json members, the
    ending of those that hold it, or folder for the names of folders; None: found by its name."""
    split_column: str | None = None
    """With source parquet or list: the column of splits; with tar: the key in .json members; None:
    found by its name or its values."""
    splits: str = ""
    """Which folder, shard or value of the split column is which split:
    train=training_set,test=test_set; none: no name stands for a split. Empty: by the words in
    them."""
    val_fraction: float = 0.15
    """Share of the training images held out for validation where the source has no split."""
    test_fraction: float = 0.15
    """Share held out for the test, read once, where the source has neither a test split nor its
    own validation split; 0: none."""
    split_seed: int = 0
    """Seed of that hold-out: the same for every model, so that they see the same images."""
    folds: int | None = setting(None, at_least=2, at_most=100)
    """Divide the training images into so many parts, class by class and seeded, of which one
    validates: `vitc train IMAGES --folds`. None: val_fraction of them validate."""
    fold: int = setting(1, at_least=1, at_most=100, needs=("folds", SOME))
    """With folds: the part that validates, from 1."""
    group: str | None = None
    """Regular expression on the image's relative path or name; images with the same first group (or
    whole match) stay in one split: bursts, patients, frames of one video."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How another aspect ratio or size reaches img_size: cut the middle, pad, or distort."""
    eval_crop: float = setting(0.875, above=0, at_most=1, needs=("fit", "crop"))
    """With fit crop: share of the shorter side that evaluation keeps (224 of 256)."""
    cache_side: int | None = setting(None, at_least=1)
    """Shrink training images to this shorter side, in pixels, and decode them once: the pixels are
    kept in the cache folder. None: decode each file in every epoch, at its own size."""
    cache_decode: Literal["full", "scaled"] = setting("full", needs=("cache_side", SOME))
    """scaled: JPEGs with eight times cache_side are decoded at 1/2, 1/4 or 1/8 of their size, to no
    less than twice cache_side: 12 megapixels in half of the time, pixels a little different."""
    balance: Literal["none", "sqrt", "full"] = "none"
    """Sampling of rare classes: as they are, by square root of their counts, or all alike."""
    bad_files: Literal["stop", "skip"] = "stop"
    """A file that cannot be decoded stops the run when met, or is replaced, named and counted."""
    max_train: int | None = None
    """Use only so many training images, class-balanced and seeded; None: all."""
    max_val: int | None = None
    """Measure on only so many validation images, each class by its share, seeded; None: all."""
    resident: Literal["auto", "on", "off"] = "auto"
    """Keep the whole set on the device as one uint8 tensor; auto: when it fits a quarter of it."""
    workers: int | None = setting(None, at_least=0, at_most=256)
    """Loader processes; None: one a core but at most 8, and 0 when resident."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean in [0, 1]; None: the source's own."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation in [0, 1]; None: the source's own."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training-time augmentation."""

    def problems(self) -> list[str]:
        found = [*self.augment.problems(), *out_of_bounds(self, "data")]
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"data.{name} {getattr(self, name)} must be in [0, 1).")
        if self.val_fraction + self.test_fraction >= 1:
            found.append(
                f"data.val_fraction {self.val_fraction} and data.test_fraction "
                f"{self.test_fraction} leave nothing to train on; their sum must be below 1."
            )
        if self.folds is not None and self.fold > self.folds:
            found.append(f"data.fold {self.fold} must be at most data.folds, {self.folds}.")
        if self.splits:
            try:
                parse_splits(self.splits)
            except ConfigError as e:
                found.append(e.message)
        if self.workers and self.resident == "on":
            found.append("data.workers has no effect with data.resident on.")
        for name in ("max_train", "max_val"):
            most = getattr(self, name)
            if most is not None and most < 1:
                found.append(f"data.{name} {most} must be at least 1.")
        if (self.mean is None) != (self.std is None):
            found.append("data.mean and data.std go together: give both or neither.")
        if self.std is not None and min(self.std, default=0) <= 0:
            found.append(f"data.std {self.std} must be above 0.")
        return found
