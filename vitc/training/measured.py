"""Which images is a trained model measured on, with which labels, and was it trained on any?"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitc.config import RunConfig
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data, open_whole
from vitc.data.identity import Images, count_alike, images_of, joined, trained_on
from vitc.data.sources import SOURCES
from vitc.data.sources.base import Split, some
from vitc.data.sources.given import followable, with_columns
from vitc.data.store import name_key
from vitc.errors import ConfigError, DataError, VitcError, suggest
from vitc.resolve import with_images
from vitc.runs.images import ALLOW, LISTING, kept_images, mostly_same, what_changed
from vitc.wording import counted

SKIP = "--skip-unknown-classes"


@dataclass(frozen=True)
class Asked:
    """What to measure on. data: None: the run's own. split: None: val of the run's own images; of
    others their val or test, or all where they have none."""

    data: str | None = None
    split: str | None = None
    allow_changed_data: bool = False
    skip_unknown_classes: bool = False
    trained_on: bool = False
    """Whether the run's training images will do where it has no val."""
    others: str = "other images: vitc evaluate RUN FOLDER"
    """What to give where the split is missing, and how."""
    model: str = "the model"
    """What a message calls it."""
    unknown: str = f"{SKIP} of vitc evaluate leaves those images out."
    """What to do where some images are of classes that it does not know."""


@dataclass(frozen=True)
class Trained:
    """What is known of a model's training: its config, classes, run folder and data.json there,
    which are None for a saved model and for the mean of several runs, `folds`."""

    config: RunConfig
    classes: Sequence[str]
    run: Path | None = None
    record: Mapping[str, Any] | None = None
    folds: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class Measured:
    """The images to measure on, labelled by indices into the model's classes.

    data: what they are of. name: val, test or all. seen: bool (N,), which of them the model was
    trained on, by their content; None: not known. notes: what a reader of the result must know.
    """

    data: DataSet
    split: Split
    name: str
    seen: NDArray[np.bool_] | None
    notes: tuple[str, ...]

    @property
    def trained_on(self) -> int | None:
        """How many of them the model was trained on."""
        return None if self.seen is None else int(self.seen.sum())


def choose_images(model: Trained, asked: Asked) -> Measured:
    """The images that `asked` stands for; the notes are logged as warnings as well.

    Raises ConfigError: no such split; DataError: images of the run that changed, or classes that
    the model does not know, unless `asked` allows them; images without labels.
    """
    notes: list[str] = []
    own = _own(model, asked)
    if own is not None:
        changed = _check_unchanged(model, own, asked, notes)
        fallback = "train" if asked.trained_on and "val" not in own.splits else "val"
        name = asked.split or fallback
        data, split = own, _split_of(own, name, asked)
    else:
        changed = True
        data, name, split = _others(model.config, asked, notes)
    split = _labelled(model.classes, data.classes, split, asked, notes)
    seen = _trained_on(model, None if changed else own, split, notes)
    for note in notes:
        logging.getLogger("vitc").warning(note)
    return Measured(data, split, name, seen, tuple(notes))


def same_images(
    model: Trained, images: Measured, classes: Sequence[str], name: str = "the other model"
) -> Measured:
    """The same images for another model, `classes` being those that their labels count in.

    Raises DataError: images of classes that it, `name`, does not know.
    """
    notes: list[str] = []
    asked = Asked(model=name, unknown="Only models of the same classes are compared.")
    split = _labelled(model.classes, classes, images.split, asked, notes)
    seen = _trained_on(model, None, split, notes)
    return Measured(images.data, split, images.name, seen, tuple(notes))


# -- the run's own images, or others ---------------------------------------------------------------


def _own(model: Trained, asked: Asked) -> DataSet | None:
    """The run's own images as they are now, wherever they are; None: others are asked for."""
    config, in_chans = model.config, model.config.model.in_chans
    if asked.data is None:
        if model.folds:
            raise ConfigError(
                f"The {len(model.folds)} models were together trained on all of their images.",
                f"Give {asked.others}",
            )
        if model.run is None:
            raise ConfigError(
                "A saved model does not record which images it was trained on.",
                f"Give {asked.others}",
            )
        return open_data(config.data, in_chans)
    if model.folds:  # what one model held out was trained on by the others
        return None
    other = _named(config, asked.data)
    mine = config.data
    if (other.source, _place(other.path)) == (mine.source, _place(mine.path)):
        return open_data(mine, in_chans)
    with contextlib.suppress(VitcError):  # another place of the same images can be trained on
        moved = open_data(replace(mine, source=other.source, path=other.path), in_chans)
        record = model.record or {}
        listed = moved.listing == record.get(LISTING, record.get("fingerprint"))
        if listed and model.run is not None and mostly_same(model.run, moved):
            return moved
    return None


def _named(config: RunConfig, data: str) -> DataConfig:
    """The images that `data` names. Raises ConfigError: it is only a kind of images."""
    if data in SOURCES and SOURCES[data].path and not Path(data).exists():
        raise ConfigError(
            f"{data!r} is a data source that needs a path, and no file or folder has that name.",
            f"Give its path instead, {SOURCES[data].path.replace('--data.path ', '')}.",
        )
    return with_images(config, data).data


def _place(path: str | None) -> str:
    return str(Path(path).resolve()) if path else ""


def _check_unchanged(model: Trained, data: DataSet, asked: Asked, notes: list[str]) -> bool:
    """Whether the run's own images changed. Raises DataError unless `asked` allows it."""
    if model.run is None or model.record is None:
        return True
    if LISTING not in model.record and data.splits["train"].pixels is None:
        notes.append(
            "This run of an earlier version recorded the names and sizes of its images only: "
            "images of the same size that were exchanged or edited are not noticed."
        )
    changed = what_changed(model.run, model.record, data)
    if changed is None:
        return False
    text = f"The images are not those that the run {model.run} was trained on: {changed}."
    if not asked.allow_changed_data:
        raise DataError(
            text,
            f"Restore them, or add {ALLOW} to measure on the images as they are; "
            "how many of these were trained on is then reported.",
        )
    notes.append(text)
    return True


def _split_of(data: DataSet, split: str, asked: Asked) -> Split:
    if split not in data.splits:
        without = asked.split is not None and (asked.data is not None or "val" in data.splits)
        raise ConfigError(
            f"This data has no {split} images; its splits are {', '.join(data.splits)}.",
            f"{'Leave out --split, or give' if without else 'Give'} {asked.others}",
        )
    return data.splits[split]


def _others(config: RunConfig, asked: Asked, notes: list[str]) -> tuple[DataSet, str, Split]:
    """Images that are not the run's: the split that is asked for, or their own val or test, or all
    where they are not divided."""
    other, in_chans = _named(config, str(asked.data)), config.model.in_chans
    other = replace(other, group=None)
    try:
        with followable(config.data):
            other = with_columns(other, config.data)
            whole = open_whole(other, in_chans)
    except DataError as error:
        hint = "To classify images without labels: vitc predict RUN PATH."
        raise DataError(error.message, f"{error.hint or ''} {hint}".strip()) from error
    notes += whole.notes
    split = asked.split or next((s for s in ("val", "test") if s in whole.splits), None)
    if split is None:
        return whole, "all", whole.splits["train"]
    if split in whole.splits:
        if len(whole.splits) > 1 and asked.split is None:
            counts = ", ".join(f"{name} {len(part):,}" for name, part in whole.splits.items())
            notes.append(f"Measured on the {split} split of {asked.data} ({counts}).")
        return whole, split, whole.splits[split]
    with followable(config.data):
        held = open_data(other, in_chans)
    part = _split_of(held, split, asked)
    notes.append(
        f"{asked.data} has no {split} split of its own: measured on the "
        f"{counted(len(part), 'image')} that training on it would hold out."
    )
    return held, split, part


# -- labels ----------------------------------------------------------------------------------------


def _labelled(
    known: Sequence[str], classes: Sequence[str], split: Split, asked: Asked, notes: list[str]
) -> Split:
    """The images with labels that are indices into the model's classes, matched by name."""
    index = {name_key(name): i for i, name in enumerate(known)}
    label_of = np.array([index.get(name_key(name), -1) for name in classes] + [-1], np.int64)
    counts = np.bincount(split.labels % len(label_of), minlength=len(label_of))  # -1: the last
    unlabelled, total = int(counts[-1]), int(counts.sum())
    if unlabelled == total:
        raise DataError(
            f"The {counted(total, 'image')} of {asked.data or 'the data'} have no labels: there is "
            "nothing to measure.",
            f"Classify them: vitc predict RUN {asked.data or 'PATH'}",
        )
    if unlabelled:
        notes.append(f"{counted(unlabelled, 'image')} without a label left out.")
    unknown = [i for i in range(len(classes)) if counts[i] and label_of[i] < 0]
    if unknown:
        count = int(counts[unknown].sum())
        names = [classes[i] for i in unknown]
        what = (
            f"{counted(len(unknown), 'class', 'classes')} that {asked.model} does not know: "
            f"{some(names, 5)} ({counted(count, 'image')})"
        )
        if not asked.skip_unknown_classes or count + unlabelled == total:
            none_left = count + unlabelled == total and SKIP in asked.unknown
            way = "Give images of these." if none_left else asked.unknown
            raise DataError(
                f"{asked.data or 'The data'} has {what}.{suggest(names[0], known)}",
                f"The classes of {asked.model}: {some(known, 10)}. {way}",
            )
        notes.append(f"Left out: {what}.")
    present = {int(label_of[i]) for i in range(len(classes)) if counts[i]}
    absent = [name for i, name in enumerate(known) if i not in present]
    if absent:
        notes.append(
            f"No image of {counted(len(absent), 'class', 'classes')} of the model: "
            f"{some(absent, 5)}."
        )
    labels = label_of[split.labels]
    return replace(split, labels=labels).take(np.flatnonzero(labels >= 0))


# -- what was trained on ---------------------------------------------------------------------------


def _trained_on(
    model: Trained, own: DataSet | None, split: Split, notes: list[str]
) -> NDArray[np.bool_] | None:
    """Which images the model was trained on; `own`: the run's own data, if it did not change."""
    total, seen = len(split), _seen(model, own)
    if seen is None:
        notes.append(
            f"Whether the model was trained on any of the {counted(total, 'image')} is not known: "
            "its images are not recorded."
        )
        return None
    now = images_of(tuple(model.classes), {"test": split}, seen.limit)
    found = trained_on(seen, now)
    count = int(found.sum())
    if count:
        notes.append(too_good(count, total))
    alike = 0 if own is not None else count_alike(seen, now)
    if alike:
        one = alike == 1
        notes.append(
            f"{_of(alike, total)} measured on {'has' if one else 'have'} the name of an image that "
            "was trained on, suffix aside, and other content: if "
            f"{'it was' if one else 'they were'} converted from it, the result is too good."
        )
    return found


def too_good(count: int, total: int) -> str:
    """A note on images measured on that were trained on."""
    were = f"{'was' if count == 1 else 'were'} trained on (the same content)"
    return f"{_of(count, total)} measured on {were}: the result is too good."


def _of(count: int, total: int) -> str:
    return "The image" if total == 1 else f"{count:,} of the {total:,} images"


def _seen(model: Trained, own: DataSet | None) -> Images | None:
    """The images that the model saw; None: not recorded."""
    if model.folds:
        every = [kept for run in model.folds if (kept := kept_images(run)) is not None]
        return reduce(joined, every) if len(every) == len(model.folds) else None
    if model.run is None or model.record is None:
        return None
    kept = kept_images(model.run)
    if kept is not None or own is not None:
        return kept or (own.images if own else None)
    if LISTING in model.record:  # of a source that is part of the package
        return open_data(model.config.data, model.config.model.in_chans).images
    return None
