"""The batches of a population: drawn on the host member by member, made on the device at once.

Members whose seeds of order and augmentation agree see the same batches, which are made once.
The S different micro-batches of a step are fetched, cut, mirrored, normalised and mixed as one
batch of S times as many images: the number of kernels does not grow with the population.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from vitc.data.augment import erased, to_device
from vitc.data.config import DataConfig
from vitc.data.loader import MicroBatch
from vitc.data.mixing import mix
from vitc.data.ops import Chain
from vitc.data.resident import Resident
from vitc.data.sampling import (
    BatchPlan,
    Erasing,
    Mix,
    Place,
    Request,
    SampleMix,
    draw_drop_path,
    draw_erasing,
    draw_flip,
    draw_lighting,
    draw_mix,
    requests,
    steps_per_epoch,
)
from vitc.train.stack import StackedBatch
from vitc.train.step import StepSettings, ready_images

T = TypeVar("T")


class StackedBatches:
    """Iterates steps [start, total): each is the list of its micro-batches for all members.

    `plans`: each member's; they differ in their seeds alone. The images are held on the device,
    and none is broken. `keep` says which members go on.
    """

    def __init__(
        self,
        held: Resident,
        config: DataConfig,
        plans: Sequence[BatchPlan],
        settings: StepSettings,
        steps: range,
    ) -> None:
        self.held, self.config, self.settings, self.steps = held, config, settings, steps
        self.members = list(plans)
        self.plans = list(dict.fromkeys(plans))
        self.steps_per_epoch = steps_per_epoch(len(held.split), plans[0].batch)
        labels = held.split.labels
        self._place_rows()
        self.asked = {p: requests(p, config, labels, steps.start, steps.stop) for p in self.plans}

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        self.members = [self.members[m] for m in members]
        self.plans = list(dict.fromkeys(self.members))
        self._place_rows()

    def _place_rows(self) -> None:
        """Which plan each member sees: int64 (M,) on the device; None: member i sees plan i."""
        number = {plan: i for i, plan in enumerate(self.plans)}
        rows = [number[plan] for plan in self.members]
        alone = rows == list(range(len(self.plans)))
        self.rows = None if alone else to_device(np.array(rows), self.settings.device)

    def __iter__(self) -> Iterator[list[StackedBatch]]:
        for step in self.steps:
            places = self.members[0].places(step, step + 1, self.steps_per_epoch)
            yield [self._batch(place) for place in places]

    def _batch(self, place: Place) -> StackedBatch:
        micro = self._micro_batch(place)
        s, count = self.settings, len(self.plans)
        images = ready_images(micro, s)
        images, targets = mix(images, micro.labels, micro.mix, s.num_classes, s.label_smoothing)
        if count == 1:
            return StackedBatch(images, targets, micro.drop_path, shared=True)
        drops = micro.drop_path
        if drops is not None:  # (2 depth, S B) -> (S, 2 depth, B)
            drops = drops.view(len(drops), count, -1).transpose(0, 1)
        parts = (images.view(count, -1, *images.shape[1:]), targets.view(count, -1, s.num_classes))
        if self.rows is None:
            return StackedBatch(*parts, drops, shared=False)
        own = None if drops is None else drops[self.rows]
        return StackedBatch(parts[0][self.rows], parts[1][self.rows], own, shared=False)

    def _micro_batch(self, place: Place) -> MicroBatch:
        """The S micro-batches as one, drawn as the loader of a single run draws each."""
        plans, augment, device = self.plans, self.config.augment, self.settings.device
        request = _joined_requests([next(self.asked[plan]) for plan in plans])
        fetched = next(self.held.fetch(iter([request]), self.config, plans[0]))
        flips = None if augment.alters else [draw_flip(p, augment, place) for p in plans]
        lights = _all([draw_lighting(p, augment, place) for p in plans])
        erasing = _all([draw_erasing(p, augment, place) for p in plans])
        drops = _all([draw_drop_path(p, place) for p in plans])
        labels = self.held.split.labels[fetched.indices]
        return MicroBatch(
            images=fetched.images,
            labels=to_device(labels, device),
            flip=None if flips is None else to_device(np.concatenate(flips), device),
            lighting=None if lights is None else to_device(np.concatenate(lights), device),
            erased=None
            if erasing is None
            else erased(_joined_erasing(erasing), augment.erase_fill, device),
            mix=_joined_mixes([draw_mix(p, augment, place) for p in plans]),
            drop_path=None if drops is None else to_device(np.concatenate(drops, axis=1), device),
            skipped=(),
        )


def _all(values: Sequence[T | None]) -> list[T] | None:
    """The values, or None where there are none: plans that differ in seeds draw all or none."""
    found = [v for v in values if v is not None]
    return found or None


def _joined_requests(asked: Sequence[Request]) -> Request:
    if len(asked) == 1:
        return asked[0]
    flips, chains = _all([r.flip for r in asked]), _all([r.chain for r in asked])
    return dataclasses.replace(
        asked[0],
        indices=np.concatenate([r.indices for r in asked]),
        crop=np.concatenate([r.crop for r in asked]),
        flip=None if flips is None else np.concatenate(flips),
        chain=None if chains is None else _joined_chains(chains),
    )


def _joined_chains(chains: Sequence[Chain]) -> Chain:
    codes = np.concatenate([c.codes for c in chains])
    return Chain(codes, np.concatenate([c.args for c in chains]), chains[0].bilinear)


def _joined_erasing(parts: Sequence[Erasing]) -> Erasing:
    boxes = np.concatenate([p.boxes for p in parts])
    return Erasing(boxes, np.concatenate([p.keys for p in parts]))


def _joined_mixes(mixes: Sequence[Mix | SampleMix]) -> Mix | SampleMix:
    """One for all samples: each with its own lambda, box and, within its micro-batch, partner."""
    if len(mixes) == 1 or all(isinstance(m, Mix) and m.kind == "none" for m in mixes):
        return mixes[0]
    each = [_by_sample(m) for m in mixes]
    size = len(each[0].partner)
    return SampleMix(
        cutmix=np.concatenate([m.cutmix for m in each]),
        lam=np.concatenate([m.lam for m in each]),
        boxes=np.concatenate([m.boxes for m in each]),
        partner=np.concatenate([m.partner + i * size for i, m in enumerate(each)]),
    )


def _by_sample(mix: Mix | SampleMix) -> SampleMix:
    if isinstance(mix, SampleMix):
        return mix
    n = len(mix.partner)
    boxes = np.tile(np.array(mix.box, np.int64), (n, 1))
    return SampleMix(np.full(n, mix.kind == "cutmix"), np.full(n, mix.lam), boxes, mix.partner)
