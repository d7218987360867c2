"""How a run goes: its length, batch, precision, seeds and what it writes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitc.settings import SOME, out_of_bounds, setting

DEFAULT_MICRO_BATCH = 256  # the paper's 2048 over 8 GPUs

Start = Literal["auto", "pretrained", "formula", "scratch"]  # from which weights, on images


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights to start from; without them a run starts from a fresh draw."""

    weights: str | None = None
    """A run folder, a weights file, a folder of save_pretrained, timm:NAME, or pretrained:NAME of
    the catalog; None: fresh. Empty: a recipe that needs some, to be named with --init."""
    source: Literal["auto", "vitc", "pycls", "pycls_branch", "torchvision", "timm"] = setting(
        "auto", needs=("weights", SOME)
    )
    """Layout of the tensor names; auto: recognised."""
    average: Literal["ema", "raw"] = setting("ema", needs=("weights", SOME))
    """Of a run or checkpoint that has both: the average, or the last weights."""
    only: tuple[str, ...] = setting((), needs=("weights", SOME))
    """Load only parts with these name prefixes (stem.layers); the rest is fresh. Empty: all."""

    probe_images: int = setting(0, at_least=0, needs=("weights", SOME))
    """Before the first step the head is fitted to the features of so many training images, at most
    all of them and at least one of each class (a linear probe). Where fine-tuning ends below it on
    validation, the run keeps it. 0: the head is that of the weights, or fresh."""

    def problems(self) -> list[str]:
        if self.weights == "":
            return ["init.weights is open: this recipe starts from weights; --init RUN|FILE."]
        return out_of_bounds(self, "init")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run's budget and machine settings."""

    epochs: int = setting(10, at_least=1, at_most=10**6)
    """Passes over the training images."""
    budget_seconds: float | None = setting(None, above=0)
    """Time for the whole run, reading images and evaluating included: `epochs` is then a plan, and
    the schedule is stretched or shortened so that it ends with the time. None: after `epochs`."""
    clock: Literal["wall", "processor"] = setting("wall", needs=("budget_seconds", SOME))
    """With budget_seconds: by the clock on the wall, or the time that processors spent on this run,
    where others use the machine too."""
    batch: int = setting(128, at_least=1, at_most=2**24)
    """Images a step, over all processes and micro-batches."""
    micro_batch: int | None = setting(None, at_least=1)
    """Images per BatchNorm statistics and per mixing draw; None: the batch, at most 256."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights and optimizer stay fp32. auto: bf16
    where a short probe of this model measures it faster here; the run saves what was chosen."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool | Literal["auto"] = False
    """Run steps compiled (torch.compile; a ViT's blocks and stem apart), where that works. auto:
    where a trial of a long run measures that it saves more time than compiling takes; the run saves
    what was chosen."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    deterministic: bool = False
    """Only deterministic kernels, so that a GPU run resumes bit-exactly; CPU always does."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: cuda, else mps, else cpu."""
    threads: int | None = setting(None, at_least=1, at_most=1024)
    """CPU threads, at most 4 a core; None: torch's choice. Recorded, and re-applied on resume."""
    seed: int = 0
    """Seed from which the three below derive."""
    seed_init: int | None = None
    """Seed of the initial weights; None: from seed."""
    seed_order: int | None = None
    """Seed of the order of images; None: from seed."""
    seed_augment: int | None = None
    """Seed of crops, flips, mixing and drop-path; None: from seed."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained, by the start of their parameters' names (stem, blocks.0) or
    `backbone` for all but the head, `norms` for every BatchNorm; they stay in eval mode, so that a
    BatchNorm keeps its statistics."""
    cache_features: bool = False
    """Run the frozen first layers of a CNN (train.freeze stem stages.0 ...) once on each training
    image, prepared as in evaluation, and train the others on what they give, which is kept in
    memory (in bf16 where the device computes it): an epoch then takes a fraction of the time, and
    no image is augmented."""
    precise_bn_images: int = setting(0, at_least=0)
    """Before each evaluation BatchNorm's statistics are recomputed from this many training images,
    for the weights and their average (the authors' code: 8192); 0: running averages."""
    eval_every_epochs: int = setting(1, at_least=1)
    """Epochs between evaluations on validation; the last epoch always is."""
    patience: int | None = setting(None, at_least=1)
    """End the run once so many evaluations in a row are no better than the best before them, and
    keep the weights of the best, a result chosen on validation; None: train to the end, keep the
    last."""
    on_divergence: Literal["stop", "rollback", "continue"] = "stop"
    """When a step has no finite result. stop: the run ends with the cause and its remedy. rollback:
    it returns to the last good state, halves the lr and leaves the batch out (for a poisoned batch
    and an exploding lr too). continue: the step is left out."""
    track: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Follow the run there too; metrics.jsonl is always written. A resumed run continues it."""
    profile: bool = False
    """Trace a few early steps into the run folder and list the ten most expensive operations."""
    log_every_steps: int = setting(10, at_least=1)
    """Steps between train lines in metrics.jsonl."""
    save_every_seconds: float = setting(300.0, at_least=0)
    """Wall time between checkpoints; the end of the run always saves."""
    save_every_steps: int | None = setting(None, at_least=1)
    """Steps between checkpoints; None: by time alone."""
    keep_checkpoints: int = setting(2, at_least=1)
    """How many of the last checkpoints stay on disk."""
    keep_every_epochs: int | None = setting(None, at_least=1)
    """Epochs between checkpoints that stay as well; None: the last ones alone."""
    keep_best: bool = False
    """The checkpoint of the best evaluation stays as well."""

    @property
    def micro(self) -> int:
        """Images in one micro-batch."""
        default = min(self.batch, DEFAULT_MICRO_BATCH)
        return default if self.micro_batch is None else self.micro_batch

    def problems(self) -> list[str]:
        found = out_of_bounds(self, "train")
        if 0 < self.precise_bn_images < self.batch:
            found.append(
                f"train.precise_bn_images {self.precise_bn_images} is less than one train.batch, "
                f"{self.batch}; it is whole batches."
            )
        if self.batch >= 1 and self.micro >= 1 and self.batch % self.micro:
            found.append(
                f"train.batch {self.batch} is not a multiple of the micro-batch {self.micro}; "
                "a step consists of complete micro-batches."
            )
        return found
