"""What does an exported file hold besides its graph, and what is a format of such files?

The record is one JSON object under the key `vitc` of the file's own metadata: the keys of a saved
model's config.json, and `export`. A program without this library reads classes, preprocessing,
temperature and thresholds from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitc.deploy.saved import Saved, saved_from, saved_values
from vitc.errors import CheckpointError
from vitc.machine import check_installed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Input = Literal["image", "tensor"]
Precision = Literal["fp32", "int8"]
KEY = "vitc"
RECORD_FORMAT = 1

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
"""What a file computes: its input -> logits (B, K)."""


@dataclass(frozen=True)
class Record:
    """What a program must know of an exported model.

    input: "image", pixels uint8 (B, H, W, C) of any size, RGB or grey, prepared in the graph; or
    "tensor", prepared and normalised float32 (B, C, h, w). temperature: divides the logits before
    the softmax for calibrated probabilities; None: none was fitted. thresholds: accuracy in percent
    -> least probability from which answers on validation images reach it (None: no such), of the
    softmax without the temperature; None: nothing was fitted.
    """

    saved: Saved
    input: Input = "image"
    precision: Precision = "fp32"
    weights: str = "ema"
    temperature: float | None = None
    thresholds: dict[str, float | None] | None = None

    def to_json(self) -> str:
        export = {
            "format": RECORD_FORMAT,
            "input": self.input,
            "precision": self.precision,
            "weights": self.weights,
            "temperature": self.temperature,
            "thresholds": self.thresholds,
        }
        return json.dumps({**saved_values(self.saved), "export": export}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | None, file: Path) -> Record:
        """Raises CheckpointError: there is none, it is damaged, or of a newer vitc."""
        if text is None:
            raise CheckpointError(
                f"{file} was not written by vitc export: it lacks the record of classes and "
                "preprocessing.",
                "Export the model from its run: vitc export RUN OUT",
            )
        try:
            values = json.loads(text)
            export = values.pop("export")
            newer = export["format"] > RECORD_FORMAT
            temperature, thresholds = export.get("temperature"), export.get("thresholds")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"The record in {file} is damaged.") from error
        if newer:
            raise CheckpointError(f"{file} was written by a newer vitc.", "Update vitc.")
        if (
            export.get("input") not in get_args(Input)
            or export.get("precision") not in get_args(Precision)
            or not (temperature is None or (type(temperature) is float and temperature > 0))
            or not isinstance(thresholds, dict | None)
        ):
            raise CheckpointError(f"The record in {file} is damaged: {str(export)[:200]}.")
        return cls(
            saved=saved_from(values, file),
            input=export["input"],
            precision=export["precision"],
            weights=str(export.get("weights")),
            temperature=temperature,
            thresholds=thresholds,
        )


class FileModel(nn.Module):
    """The graph of a file as a model on the CPU: float (B, C, h, w) -> (B, K).

    `run` takes what the file takes. `forward` of a file that takes images expects prepared ones of
    pixels in [0, 255], which the graph leaves as they are.
    """

    def __init__(self, compute: Run, record: Record, file: Path) -> None:
        super().__init__()
        self.compute, self.file = compute, file
        self.input, self.classes = record.input, record.saved.num_classes

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The file's logits (B, K). Raises CheckpointError: its graph gives something else."""
        found = self.compute(images)
        if found.shape != (len(images), self.classes) or found.dtype != np.float32:
            raise CheckpointError(
                f"{self.file} is damaged: its graph gives {found.dtype} of shape {found.shape}, "
                f"not float32 of shape {(len(images), self.classes)}.",
                "Export it again.",
            )
        return found

    def forward(self, x: Tensor) -> Tensor:
        if self.input == "image":
            x = x.to(torch.uint8).permute(0, 2, 3, 1)
        return torch.from_numpy(self.run(x.contiguous().numpy()))


@dataclass(frozen=True, eq=False)
class Made:
    """What a format writes: the graph, its record, and the tensors behind it.

    calibration: prepared images, the graph's input, from which int8 takes its ranges. exact_resize:
    whether the graph resizes as PyTorch does, in place of its engine's own way. kept_float: the
    layers that int8 leaves in float, filled in while it is written.
    """

    program: ExportedProgram | None
    model: nn.Module
    record: Record
    calibration: NDArray[Any] | None = None
    exact_resize: bool = False
    kept_float: list[str] = field(default_factory=list)


class Format:
    """One kind of file. An instance of each is in `formats.FORMATS`."""

    kind: ClassVar[str]
    """Its name: --format."""
    title: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str] = ""
    """The extra of this package that installs `packages`."""
    packages: ClassVar[tuple[str, ...]] = ()
    int8_packages: ClassVar[tuple[str, ...]] = ()
    """What int8 needs besides."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the other files that it writes."""
    graph: ClassVar[bool] = True
    """Whether it holds a graph, or tensors alone, which this library runs."""
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    own_resize: ClassVar[bool] = False
    """Whether its engine resizes images in a way of its own, which is off by single levels."""

    def check_installed(self, *packages: str) -> None:
        """Raises ConfigError, with the line to install what is missing."""
        check_installed(self.title, self.extra, *(packages or self.packages))

    def write(self, made: Made, file: Path) -> None:
        """Write `file` and what belongs to it into its folder, which is empty."""
        raise NotImplementedError

    def replace_record(self, file: Path, record: Record) -> None:
        """Of a format of int8: exchange the record of a file that was written."""
        raise NotImplementedError

    def open(self, file: Path, threads: int) -> tuple[Record, nn.Module]:
        """The record and the model of a file. Raises CheckpointError: damaged, or not ours."""
        raise NotImplementedError


def damaged(file: Path, title: str, error: Exception) -> CheckpointError:
    """For a library's own error on a file."""
    why = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
    return CheckpointError(f"{file} cannot be read as {title}: {why}", "Export it again.")
