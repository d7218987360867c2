"""What every model's config has. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every model has; a concrete one is a subclass with its own fields."""

    name: str = "model"
    """Name in the zoo, for messages and reports."""
    img_size: int | tuple[int, int] = 224
    """Input size in pixels, one side or (height, width)."""
    in_chans: int = 3
    """Input channels C."""
    num_classes: int | None = None
    """Classes K of the head; None: as many as the data has (1000 without data)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def summary(self) -> str:
        """What it is made of, in a few words."""
        return self.name

    def problems(self) -> list[str]:
        found = []
        if min(self.size) < 1:
            found.append(f"model.img_size {self.img_size} must be at least 1.")
        if self.in_chans < 1:
            found.append(f"model.in_chans {self.in_chans} must be at least 1.")
        if self.num_classes is not None and self.num_classes < 1:
            found.append(f"model.num_classes {self.num_classes} must be at least 1.")
        return found


class Reported(NamedTuple):
    """A model's cost as the paper prints it, ViTs in Table 1 and CNNs in Table 2. Its counter is
    not public: of ViTs it differs from pycls's by up to 0.5 % in flops, 1.3 % in activations."""

    gflops: float
    """10^9 multiply-adds."""
    params_m: float
    """10^6 parameters."""
    activations_m: float
    """10^6 activations."""
