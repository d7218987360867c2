"""Which class is in this image? A run folder's model on files, PIL images or arrays."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from vitc.data.sources.base import IMAGE_SUFFIXES
from vitc.errors import BrokenFileError, ConfigError, suggest_beside
from vitc.machine import cores

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Source = str | os.PathLike[str] | Image | NDArray[np.uint8]

Form = Literal["table", "json", "csv"]

# -- which images ----------------------------------------------------------------------------------


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files that `paths` name, in that order; a folder: the images in it by suffix, sorted.

    Raises ConfigError: a path that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f"There is no file {path}.{suggest_beside(path)}")
        if not path.is_dir():
            found.append(path)
            continue
        before = len(found)
        for root, folders, files in os.walk(path):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            images = (f for f in files if Path(f).suffix[1:].lower() in IMAGE_SUFFIXES)
            found += [Path(root, f) for f in sorted(images) if not f.startswith(".")]
        if len(found) == before:
            raise ConfigError(
                f"There is no image in the folder {path}.",
                f"Images end in {', '.join(f'.{s}' for s in sorted(IMAGE_SUFFIXES))}.",
            )
    return found


# -- prediction ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of N images over K classes.

    probs: float32 (N, K), rows sum to 1. classes: K names. names: N, the file or `image 0`.
    """

    probs: NDArray[np.float32]
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def topk(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """For every image its k likeliest (class, probability), best first; all K if k > K."""
        return [best_classes(row, self.classes, k) for row in self.probs]


def best_classes(
    probs: NDArray[np.float32], classes: Sequence[str], k: int
) -> list[tuple[str, float]]:
    """The k likeliest (class, probability) of one row (K,), best first; equals in class order."""
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1.")
    order = np.argsort(-probs, kind="stable")[:k]
    return [(classes[i], float(probs[i])) for i in order]


class Predictor:
    """The model of a run folder, with the run's own classes and preparation of images.

    `path`: the run folder, or a folder of `save_pretrained`. `device`: auto (cuda > mps > cpu) or
    one of these. `weights`: "ema" or "raw", of the run's last checkpoint. Computes in fp32,
    whatever the run trained in, so that an image's probabilities do not depend on the machine
    beyond rounding.

    Raises ConfigError (no such folder, unknown device), CheckpointError (none, or damaged).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: Literal["auto", "cuda", "mps", "cpu"] = "auto",
        weights: Literal["ema", "raw"] = "ema",
    ) -> None:
        from vitc.deploy.classifier import Classifier

        self.classifier = c = Classifier.load(path, device, weights)
        self.model, self.device, self.classes, self.notes = c.model, c.device, c.classes, c.notes

    def __call__(self, images: Source | Iterable[Source], batch: int = 64) -> Predictions:
        """Class probabilities of images: paths (a folder: all in it), PIL, or uint8 arrays.

        Arrays are (H, W) or (H, W, C) with C 1, 3 or 4. All results are kept: for more images
        than memory holds use `each`. Raises BrokenFileError naming the first that cannot be read,
        ConfigError for a path that does not exist or an array of another kind.
        """
        names, rows = [], []
        for name, result in self.each(images, batch):
            if isinstance(result, BrokenFileError):
                raise result
            names.append(name)
            rows.append(result)
        empty = np.zeros((0, len(self.classes)), np.float32)
        return Predictions(np.stack(rows) if rows else empty, self.classes, tuple(names))

    def each(
        self, images: Source | Iterable[Source], batch: int = 64
    ) -> Iterator[tuple[str, NDArray[np.float32] | BrokenFileError]]:
        """(name, probabilities (K,) or the error of a broken file), one image after the other.

        Reads `batch` images ahead and no more, so that any number fits in memory.
        """
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1.")
        named = _named(images)
        with ThreadPoolExecutor(min(batch, cores(), 16)) as pool:
            while group := list(itertools.islice(named, batch)):
                loaded = list(pool.map(self._load, group))
                good = [pixels for pixels in loaded if not isinstance(pixels, BrokenFileError)]
                rows = iter(self.classifier.probabilities(good))
                for (name, _), pixels in zip(group, loaded, strict=True):
                    yield name, pixels if isinstance(pixels, BrokenFileError) else next(rows)

    def _load(self, named: tuple[str, Source]) -> Tensor | BrokenFileError:
        """One image as the model's input: uint8 (C, H, W)."""
        try:
            return self.classifier.prepare(_pixels(*named, self.classifier.in_chans))
        except BrokenFileError as error:
            return error


def _named(images: Source | Iterable[Source]) -> Iterator[tuple[str, Source]]:
    """Every single image with its name; a folder becomes its files."""
    from PIL.Image import Image

    alone = isinstance(images, str | os.PathLike | np.ndarray | Image)
    many = cast("Iterable[Source]", [images] if alone else images)
    for i, image in enumerate(many):
        if isinstance(image, str | os.PathLike):
            yield from ((str(file), file) for file in find_images([image]))
        else:
            yield getattr(image, "filename", "") or f"image {i}", image


def _pixels(name: str, image: Source, in_chans: int) -> NDArray[np.uint8]:
    """uint8 (H, W, in_chans) of a file, a PIL image or an array."""
    from vitc.data.decode import read_image, read_opened, to_channels

    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), in_chans, name)
    if not isinstance(image, np.ndarray):
        return read_opened(image, in_chans, name)
    grey_or_channels = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not grey_or_channels or image.size == 0:
        raise ConfigError(
            f"{name} is an array of {image.dtype} and shape {image.shape}.",
            "Arrays must be uint8, (H, W) or (H, W, C) with 1, 3 or 4 channels.",
        )
    return to_channels(image if image.ndim == 3 else image[..., None], in_chans)


# -- what is printed -------------------------------------------------------------------------------


def report(
    predictor: Predictor, files: Sequence[Path], topk: int, form: Form, stream: TextIO
) -> list[BrokenFileError]:
    """Write one line per image to `stream` as they come; returns the errors of broken files."""
    topk = min(topk, len(predictor.classes))
    wide = max(map(len, ["image", *map(str, files)]))
    deep = max(map(len, ["class", *predictor.classes]))
    rows, broken = csv.writer(stream), []
    if form == "csv":
        ranks = [""] if topk == 1 else [f"_{i}" for i in range(1, topk + 1)]
        rows.writerow(["image", *(f"{c}{r}" for r in ranks for c in ("class", "probability"))])
    elif form == "table":
        head = "  ".join([f"{'class':<{deep}}  probability"] * topk)
        stream.write(f"{'image':<{wide}}  {head}\n")
    for name, result in predictor.each(files):
        values: dict[str, Any] = {"image": name}
        best = []
        if isinstance(result, BrokenFileError):
            broken.append(result)
            if form != "json":
                continue
            values |= {"status": "failed", "error": result.message, "hint": result.hint}
        else:
            best = best_classes(result, predictor.classes, topk)
            values["top"] = [{"class": label, "probability": p} for label, p in best]
        if form == "json":
            stream.write(json.dumps(values) + "\n")
        elif form == "csv":
            rows.writerow([name, *itertools.chain.from_iterable(best)])
        else:
            cells = [f"{label:<{deep}}  {100 * p:9.2f} %" for label, p in best]
            stream.write(f"{name:<{wide}}  {'  '.join(cells)}\n")
    return broken
