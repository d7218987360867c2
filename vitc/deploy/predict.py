"""Which class is in this image? A run folder's model on files, PIL images or arrays."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import DataConfig
from vitc.data.dataset import read_source
from vitc.data.sources import SUFFIXES, guess_source
from vitc.data.sources.base import IMAGE_SUFFIXES, Split, is_pattern, some
from vitc.data.sources.folder import hidden_notes, own_notes, walk
from vitc.data.sources.given import followable, with_columns
from vitc.data.sources.lists import List, listed_files
from vitc.data.store import name_key
from vitc.deploy.rows import FORMS
from vitc.errors import BrokenFileError, ConfigError, DataError, suggest_beside
from vitc.machine import cores, memory_kept
from vitc.wording import counted


@dataclass(frozen=True, eq=False)
class Inside:
    """An image in a tar, a table or a pack."""

    name: str
    split: Split
    index: int

    def __str__(self) -> str:
        return self.name


if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Source = str | os.PathLike[str] | Image | NDArray[np.uint8] | Inside

# -- which images ----------------------------------------------------------------------------------


Found = Path | Inside


def find_images(
    paths: Iterable[str | os.PathLike[str]], own: DataConfig | None = None
) -> list[Found]:
    """The images that `paths` name, in that order, each once.

    A folder: the images in it, found as for training; a list, tar, table or pack: all images in it,
    labelled or not. A link to nothing and a path that does not exist, named or listed, are among
    them, as broken images. `own`: what the model was trained on, whose columns are taken where a
    list or table has them. Raises ConfigError: no path exists, or a folder without images;
    DataError: one that cannot be read, or a list of files that are all missing.
    """
    found: dict[tuple[str, str], Found] = {}
    absent: list[Path] = []
    for path in map(Path, paths):
        if _is_data(path):
            inside = _images_inside(path, own or DataConfig())
        elif os.path.isdir(path):
            inside = _images_below(path)
        else:
            inside = [path]
            if not os.path.lexists(path):
                absent.append(path)
        for image in inside:
            if isinstance(image, Inside):
                found[str(path), image.name] = image
            else:
                found.setdefault((os.path.realpath(image.parent), image.name), image)
    if absent and set(absent) >= set(found.values()):
        others = f", nor any of {counted(len(absent) - 1, 'other')}" if len(absent) > 1 else ""
        raise ConfigError(f"There is no file {absent[0]}{others}.{suggest_beside(absent[0])}")
    return list(found.values())


def _is_data(path: Path) -> bool:
    """Whether a path is a list, tar, table or pack, several of them, or a folder of these."""
    if os.path.isdir(path):
        return guess_source(path) in ("tar", "parquet")
    text = str(path)
    return text.lower().endswith(SUFFIXES) and (os.path.isfile(path) or is_pattern(text))


def _images_inside(path: Path, own: DataConfig) -> Sequence[Found]:
    config = DataConfig(source=guess_source(path), path=os.path.expanduser(path))
    with followable(own):
        config = with_columns(config, own)
        if config.source == List.kind:
            return listed_files(config)
        splits = read_source(config, strict=False).splits.values()
    return [Inside(name, split, i) for split in splits for i, name in enumerate(split.names)]


def _images_below(folder: Path) -> list[Path]:
    """The images in a folder, sorted folder by folder, and links to nothing: what they meant may
    have been one, or a folder of them.

    A folder that is reached twice through links is read once, under its own name if it has one.
    """
    tree, own = walk(str(folder))
    places = {os.path.join(folder, path): place for path, place in tree.places.items()}
    seen: set[str] = set()
    found: list[Path] = []
    special: list[str] = []
    for path in sorted(places, key=lambda p: (os.path.realpath(p) != os.path.abspath(p), p)):
        place, real = places[path], os.path.realpath(path)
        if place.error is not None:
            raise DataError(f"The folder {path} cannot be read: {place.error.strerror}.")
        if real in seen:
            continue
        seen.add(real)
        names = [name for name, _ in place.images]
        odd = [n for n in place.others if not os.path.isfile(os.path.join(path, n))]
        dead = [n for n in odd if not os.path.exists(os.path.join(path, n))]
        special += [os.path.join(path, n) for n in odd if n not in dead]
        found += [Path(path, name) for name in (*names, *dead)]
    notes = [*own_notes(own), *hidden_notes(tree)]
    if special:
        what = counted(len(special), "special file")
        notes.append(f"{what} (pipe, socket, device) passed over: {some(special)}.")
    if not found:
        kinds = f"Images end in {', '.join(f'.{s}' for s in sorted(IMAGE_SUFFIXES))}."
        raise ConfigError(f"There is no image in the folder {folder}.", " ".join([kinds, *notes]))
    for note in notes:
        logging.getLogger("vitc").warning(note)
    return sorted(found, key=lambda file: (name_key(str(file.parent)), name_key(file.name)))


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

    `path`: the run folder, a folder of `save_pretrained` or a file of `vitc export`. `device`: auto
    (cuda > mps > cpu) or one of these. `weights`: "ema" or "raw", of the run's last checkpoint.
    Computes in fp32, whatever the run trained in, so that an image's probabilities do not depend
    on the machine beyond rounding.

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
        than memory holds use `each`. Raises BrokenFileError naming the first of several that is
        missing or cannot be read, ConfigError for one path that does not exist, an array of
        another shape or anything else.
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
        yield from self._each(images, batch, self.classifier.probabilities)

    def each_features(
        self, images: Source | Iterable[Source], batch: int = 64
    ) -> Iterator[tuple[str, NDArray[np.float32] | BrokenFileError]]:
        """The same with what the head reads, float32 (D,), in place of probabilities.

        Raises ConfigError: the model has no such features to give, as an exported file.
        """
        yield from self._each(images, batch, self.classifier.features)

    @property
    def feature_width(self) -> int:
        """D of `each_features`."""
        c, size = self.classifier, self.classifier.preprocessing.img_size
        assert size is not None
        blank = np.zeros((*size, c.in_chans), np.uint8)
        return int(c.features([c.prepare(blank)]).shape[1])

    def _each(
        self,
        images: Source | Iterable[Source],
        batch: int,
        compute: Callable[[Sequence[Tensor]], NDArray[np.float32]],
    ) -> Iterator[tuple[str, NDArray[np.float32] | BrokenFileError]]:
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1.")
        named = _named(images, self.classifier.config.data)
        with memory_kept(), ThreadPoolExecutor(min(batch, cores(), 16)) as pool:
            while group := list(itertools.islice(named, batch)):
                loaded = list(pool.map(self._load, group))
                good = [pixels for pixels in loaded if not isinstance(pixels, BrokenFileError)]
                rows = iter(compute(good))
                for (name, _), pixels in zip(group, loaded, strict=True):
                    yield name, pixels if isinstance(pixels, BrokenFileError) else next(rows)

    def _load(self, named: tuple[str, Source]) -> Tensor | BrokenFileError:
        """One image as the model's input: uint8 (C, H, W)."""
        try:
            return self.classifier.prepare(_pixels(*named, self.classifier.in_chans))
        except BrokenFileError as error:
            return error.with_traceback(None)  # which holds the bytes that were read


def _named(images: Source | Iterable[Source], own: DataConfig) -> Iterator[tuple[str, Source]]:
    """Every single image with its name; a folder becomes its files."""
    from PIL.Image import Image

    alone = isinstance(images, str | os.PathLike | np.ndarray | Image | Inside)
    # neither the numbers in bytes nor the lines of a file are images; `_pixels` refuses the whole
    alone |= isinstance(images, bytes | bytearray | io.IOBase) or not isinstance(images, Iterable)
    many = cast("Iterable[Source]", [images] if alone else images)
    for i, image in enumerate(many):
        if isinstance(image, str | os.PathLike):
            absent = not alone and not os.path.lexists(image)
            files = [Path(image)] if absent else find_images([image], own)
            yield from ((str(file), file) for file in files)
        elif isinstance(image, Inside):
            yield image.name, image
        else:
            yield getattr(image, "filename", "") or f"image {i}", image


def _pixels(name: str, image: Source, in_chans: int) -> NDArray[np.uint8]:
    """uint8 (H, W, in_chans) of a file, a PIL image or an array."""
    from PIL.Image import Image

    from vitc.data.decode import read_image, read_opened, to_channels

    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), in_chans, name)
    if isinstance(image, Inside):
        return image.split.read(image.index, in_chans)
    if isinstance(image, Image) and 0 not in image.size:
        return read_opened(image, in_chans, name)
    if not isinstance(image, np.ndarray):
        what = f"of size {image.size}" if isinstance(image, Image) else type(image).__name__
        raise ConfigError(
            f"{name} is {what}.",
            "Give a path, a PIL image or a uint8 array; of bytes, Image.open(io.BytesIO(bytes)).",
        )
    grey_or_channels = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not grey_or_channels or image.size == 0:
        raise ConfigError(
            f"{name} is an array of {image.dtype} and shape {image.shape}.",
            "Arrays must be uint8, (H, W) or (H, W, C) with 1, 3 or 4 channels.",
        )
    return to_channels(image if image.ndim == 3 else image[..., None], in_chans)


# -- what is written -------------------------------------------------------------------------------


def report(
    predictor: Predictor,
    files: Sequence[Found],
    topk: int,
    form: str,
    stream: IO[Any],
    note: Callable[[str], object],
    features: bool = False,
) -> int:
    """Write a row an image to `stream` as they come, in one of `rows.FORMS`: its classes, or its
    features. The error of a broken file goes to `note`; returns how many there are."""
    topk, broken = min(topk, len(predictor.classes)), 0
    width = predictor.feature_width if features else 0
    rows = FORMS[form](stream, files, predictor.classes, topk, width)
    for name, result in predictor.each_features(files) if features else predictor.each(files):
        if isinstance(result, BrokenFileError):
            broken += 1
            note(f"broken: {result.message}")
            rows.broken(name, result)
        elif features:
            rows.write(name, [], result)
        else:
            rows.write(name, best_classes(result, predictor.classes, topk), None)
    rows.close()
    return broken
