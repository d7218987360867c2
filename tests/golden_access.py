"""How the golden tests reach inside the package: the one file to edit when a module moves.

Everything else in them goes through the command line, the public names and files on disk.
`ADDED`, `REMOVED` and `RENAMED` list the keys of JSON that changed on purpose since the goldens
were written (CHANGELOG.md says why); any other difference is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import vitc
from vitc.cli.main import main

__all__ = ["ADDED", "REMOVED", "RENAMED", "batches", "main"]

ADDED: frozenset[str] = frozenset(
    {
        "schema",
        "kind",
        "trained_on",
        "time_spent",
        "report",
        "notes",
        "split_column",
        "splits",
        "budget_seconds",
        "clock",
        "cache_side",
        "cache_features",
        "cache_decode",
        "failed_to_learn",
        "mix_prob",
        "norm_eps",
        "padding",
        "probe_images",
        "best_of",
        "patience",
        "on_divergence",
        "keep_every_epochs",
        "keep_best",
        "track",
        "profile",
        "skipped_steps",
        "mfu",
        "rollbacks",
        "folds",
        "fold",
        "max_val",
        "time_to_target",
    }
)
"""Keys that today's JSON has beside those of the goldens."""
REMOVED: frozenset[str] = frozenset({"primary_metric", "divergence_rule", "about"})
"""Keys of the goldens that today's JSON no longer has."""
RENAMED: dict[str, str] = {}
"""Key in the goldens -> today's name."""


def batches(recipe: str, steps: int, settings: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """What the first steps of a run train on: `raw` uint8, `images` float32 and `targets`."""
    from vitc.data.augment.mixing import mix
    from vitc.data.dataset import open_data
    from vitc.data.loader import open_train
    from vitc.training.build import batch_plan
    from vitc.training.parallel import Processes
    from vitc.training.step import StepSettings, ready_images

    config = vitc.load_config(recipe, **settings)
    device, procs = torch.device("cpu"), Processes()
    data = open_data(config.data, config.model.in_chans)
    plan = batch_plan(config, procs)
    ready = StepSettings(config, device, procs, data.mean, data.std, len(data.classes))
    with open_train(data, config.data, plan, device, 0, steps) as loader:
        for micros in loader:
            for micro in micros:
                images, targets = mix(
                    ready_images(micro, ready),
                    micro.labels,
                    micro.mix,
                    ready.num_classes,
                    config.data.augment.label_smoothing,
                )
                yield {"raw": micro.images, "images": images, "targets": targets}
