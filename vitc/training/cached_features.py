"""How do frozen layers see each training image only once? (`train.cache_features`)

The stem and stages of a CNN that are not trained give the same features in every epoch, as long as
images are not augmented. They are computed once, prepared as in evaluation, and kept where the
device computes; the steps of a run then take them in place of images.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitc.data.augment.device import finish, to_device
from vitc.data.cache import training_split
from vitc.data.loader import open_eval
from vitc.data.pixels import Fetched, Request, Resident, device_memory
from vitc.data.store import Ints
from vitc.errors import ConfigError
from vitc.machine import computes_bf16
from vitc.models.cnn import CNN
from vitc.models.folding import folded
from vitc.models.zoo import build_model
from vitc.training.build import Setup
from vitc.training.device import autocast
from vitc.training.evaluate import eval_batch
from vitc.training.stop import StopSignal
from vitc.wording import counted, size

MEMORY_SHARE = 0.25  # of the device's, that features may take


@dataclass(frozen=True, eq=False)
class CachedFeatures(Resident):
    """The training split as features: `images` is float32 or bfloat16 (n, C, h, w)."""

    @property
    def note(self) -> str:
        """Where the features are, in one sentence for the log."""
        n, *shape = self.images.shape
        what = f"Features of {' x '.join(map(str, shape))} of {counted(n, 'training image')}"
        return f"{what} are kept on {self.images.device.type} ({size(self.images.nbytes)})."

    def train(self, asked: Iterable[Request]) -> Generator[Fetched, None, None]:
        """The micro-batches requested."""
        for request in asked:
            indices, skipped = self._settled(request)
            rows = to_device(indices, self.images.device)
            yield Fetched(self.images.index_select(0, rows), indices, skipped)

    def batches(self, places: Ints, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (b, C, h, w), labels int64 (b,)) of these images, without the broken ones."""
        places = places[~self.broken[places]]
        labels = torch.from_numpy(self.split.labels[places]).to(self.images.device)
        rows = torch.from_numpy(places).to(self.images.device)
        for at in range(0, len(rows), batch):
            yield self.images[rows[at : at + batch]], labels[at : at + batch]


def cached_features(
    setup: Setup, model: nn.Module, stop: StopSignal | None = None
) -> CachedFeatures | None:
    """The features of the training images, by the first layers of `model`; None: the run trains on
    images.

    Deterministic, so that a resumed run has the same. Raises InterruptedRun: `stop` was signalled;
    and what reading images raises.
    """
    config, device = setup.config, setup.device
    parts = config.cached_parts
    if not parts:
        return None
    split, _ = training_split(setup.data, config.data, config.model.in_chans)
    batch = eval_batch(config, device)
    images = open_eval(split, setup.data, config.data, setup.plan, device, batch=batch)
    # A forward pass alone is twice as fast in bf16, whatever the run trains in.
    precision = "bf16" if computes_bf16(device) else config.train.precision
    last, data = config.train.channels_last, setup.data
    fast = folded(model)
    assert isinstance(fast, CNN)
    kept: Tensor | None = None
    broken = np.zeros(len(split), np.bool_)
    at = 0
    for pixels, labels in (stop or StopSignal()).ends(images):
        count = min(len(labels), len(split) - at)  # the last batch may be padded
        with torch.no_grad(), autocast(precision, device):
            ready = finish(pixels, None, data.mean, data.std, last)
            features = fast.forward_to(ready, parts)
        if kept is None:
            kept = features.new_empty((len(split), *features.shape[1:]))
        kept[at : at + count] = features[:count]
        broken[at : at + count] = (labels[:count] < 0).cpu().numpy()
        at += count
    assert kept is not None
    return CachedFeatures(kept, broken, split, config.data, setup.plan)


def check_memory(setup: Setup) -> None:
    """Raises ConfigError: the features would not fit into memory."""
    config, device = setup.config, setup.device
    if not config.cached_parts:
        return
    with torch.device("meta"):
        model = build_model(config.model, len(setup.data.classes))
        images = torch.empty(1, config.model.in_chans, *config.model.size)
    assert isinstance(model, CNN)
    numbers = model.eval().forward_to(images, config.cached_parts).numel()
    each = 2 if computes_bf16(device) else 4
    need, have = len(setup.data.splits["train"]) * numbers * each, device_memory(device)
    if need > MEMORY_SHARE * have:
        raise ConfigError(
            f"train.cache_features: the features take {size(need)}, more than a quarter of the "
            f"{size(have)} of {device.type}.",
            "Leave it out, freeze more layers, or use fewer images (--data.max_train).",
        )
