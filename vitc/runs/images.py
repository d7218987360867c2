"""Which images did a run see, and are these the same? Free of torch.

data.json has their fingerprint; images.npz has every image with its split and digest, from which
follows what changed, and whether an image was trained on. Runs of earlier versions have a hash of
names and sizes alone, and so have the runs in data.json besides (`LISTING`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitc.data.dataset import DataSet
from vitc.data.identity import Images, changes, from_file, images_of, trained_on
from vitc.data.sources import SOURCES
from vitc.data.split_words import SPLITS

IMAGES = "images.npz"
LISTING = "names_and_sizes"
MOST_NAMES = 1_000  # held-out names in data.json; images.npz has all
ALLOW = "--allow-changed-data"


def record_of(data: DataSet) -> dict[str, Any]:
    """What data.json keeps of the identity of a run's images."""
    held_out = {k: list(s.names) for k, s in data.splits.items() if k != "train"}
    few = sum(map(len, held_out.values())) <= MOST_NAMES
    return {
        "fingerprint": data.fingerprint,
        LISTING: data.listing,
        "held_out": held_out if few else IMAGES,
    }


def images_to_keep(data: DataSet) -> Images | None:
    """What images.npz keeps; None for a source that is part of the package and cannot change."""
    return data.images if SOURCES[data.source].path else None


def kept_images(run: Path) -> Images | None:
    """The images that a run was trained and evaluated on; None: its folder has no record of them.

    Raises CheckpointError: it is damaged.
    """
    file = run / IMAGES
    return from_file(file) if file.is_file() else None


def images_of_weights(weights: str | None) -> Images | None:
    """The images that initial weights were trained on, where these are of a run or a checkpoint of
    one; None: not known."""
    if not weights:
        return None
    place = Path(weights)
    runs = (place, *place.parents[1:2])  # RUN, RUN/checkpoints/step_N
    return next((kept for run in runs if (kept := kept_images(run)) is not None), None)


def leaks(earlier: Images | None, data: DataSet) -> list[str]:
    """A warning for each held-out split with images that the initial weights were trained on."""
    if earlier is None:
        return []
    now = like(earlier, data)
    seen, found = trained_on(earlier, now), []
    for code, split in enumerate(SPLITS):
        held_out = now.splits == code
        count = int((seen & held_out).sum())
        if count and split != "train":
            found.append(
                f"LEAK: the weights that this run starts from were trained on {count:,} of the "
                f"{int(held_out.sum()):,} {split} images: the {split} result will be too good."
            )
    return found


def like(kept: Images, data: DataSet) -> Images:
    """The images of `data`, with digests that can be compared with those that a run kept."""
    if kept.limit == data.images.limit:
        return data.images
    return images_of(data.classes, data.splits, kept.limit)


def mostly_same(run: Path, data: DataSet) -> bool:
    """Whether most images are of the run's, by content; True where its folder does not know."""
    kept = kept_images(run)
    if kept is None:
        return True
    return bool(np.isin(like(kept, data).contents, kept.contents).mean() > 0.5)


def what_changed(run: Path, record: Mapping[str, Any], data: DataSet) -> str | None:
    """How `data` differs from what the run in the folder `run` saw; None: not at all.

    record: the run's data.json. Raises CheckpointError.
    """
    if LISTING not in record:
        if record.get("fingerprint") == data.listing:
            return None
        counts = record.get("counts", {})
        now = {name: len(split) for name, split in data.splits.items()}
        return f"{_images(counts)} then, {_images(now)} now, or other names, sizes or labels"
    if record.get("fingerprint") == data.fingerprint:
        return None
    kept = kept_images(run)
    if kept is None:
        return "which ones is not known, since the run has no images.npz"
    return "; ".join(changes(kept, like(kept, data))) or "their order, or the kind of their source"


def _images(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in SPLITS if name in counts)
