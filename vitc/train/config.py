"""How a run goes: its length, batch, precision, seeds and what it writes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DEFAULT_MICRO_BATCH = 256  # the paper's 2048 over 8 GPUs


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run's budget and machine settings."""

    epochs: int = 10
    """Passes over the training images."""
    batch: int = 128
    """Images a step, over all processes and micro-batches."""
    micro_batch: int | None = None
    """Images per BatchNorm statistics and per mixing draw; None: the batch, at most 256."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights and optimizer stay fp32. auto: bf16
    where a short probe of this model measures it faster here; the run saves what was chosen."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool = False
    """torch.compile with static shapes: 10-25 s of compilation first."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    deterministic: bool = False
    """Only deterministic kernels, so that a GPU run resumes bit-exactly; CPU always does."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: cuda, else mps, else cpu."""
    threads: int | None = None
    """CPU threads; None: torch's choice. Recorded, and re-applied on resume."""
    seed: int = 0
    """Seed from which the three below derive."""
    seed_init: int | None = None
    """Seed of the initial weights; None: from seed."""
    seed_order: int | None = None
    """Seed of the order of images; None: from seed."""
    seed_augment: int | None = None
    """Seed of crops, flips, mixing and drop-path; None: from seed."""
    eval_every_epochs: int = 1
    """Epochs between evaluations on validation; the last epoch always is."""
    log_every_steps: int = 10
    """Steps between train lines in metrics.jsonl."""
    save_every_seconds: float = 300.0
    """Wall time between checkpoints; the end of the run always saves."""
    save_every_steps: int | None = None
    """Steps between checkpoints; None: by time alone."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""

    @property
    def micro(self) -> int:
        """Images in one micro-batch."""
        return (
            min(self.batch, DEFAULT_MICRO_BATCH) if self.micro_batch is None else self.micro_batch
        )

    def problems(self) -> list[str]:
        found = []
        for name in ("epochs", "batch", "eval_every_epochs", "log_every_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                found.append(f"train.{name} {getattr(self, name)} must be at least 1.")
        for name in ("threads", "save_every_steps", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"train.{name} {value} must be at least 1, or None.")
        if self.save_every_seconds < 0:
            found.append(f"train.save_every_seconds {self.save_every_seconds} must be 0 or more.")
        if self.batch >= 1 and self.micro >= 1 and self.batch % self.micro:
            found.append(
                f"train.batch {self.batch} is not a multiple of the micro-batch {self.micro}; "
                "a step is a whole number of micro-batches."
            )
        return found
