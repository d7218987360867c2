"""The study that ships: ViT_C against ViT_P on the embedded images, sized to a few minutes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.study.design import Plan
from vitc.study.measures.hparams import hparams_plan
from vitc.wording import counted

RECIPE = "fashion_vit_p"  # its ranges: [c / 8, 4 c] around the ViT_P's own best values
REFERENCE = "vit_p_tiny"
# Patch 4 is what CIFAR-size ViTs use: nobody shall call the ViT_P at patch 8 a straw man.
CONTENDERS = ("vit_c_tiny", "vit_p_tiny_patch4", REFERENCE)
OPTIMS = ("adamw", "sgd")
BUDGET: dict[str, Any] = {  # of one trial
    "train.epochs": 3,
    "train.batch": 64,
    "train.eval_every_epochs": 3,  # one evaluation of both weights costs a tenth of a trial
    "data.max_train": 3200,
}
FEWEST, MOST = 8, 64  # draws: with fewer the four comparisons can show nothing
# Evaluation, saving and start of a trial over its training time: an estimate, and a low one. Trials
# of 4 to 15 s came to 1.21 on two cores, so a study runs somewhat over its budget.
OVERHEAD = 1.12


def quick_plan(
    seconds: float,
    workers: int,
    *,
    draws: int | None = None,
    seed: int = 0,
    looks: int = 1,
    **overrides: Any,
) -> tuple[Plan, str]:
    """The plan, with as many draws as `seconds` allow here (or `draws`), and why so many.

    `overrides` are settings for every trial. Raises ConfigError: among them one of a model, a stem
    or an optimizer, which are what it compares.
    """
    _keep_contenders(overrides)
    settings = {**BUDGET, **overrides}
    make: dict[str, Any] = {
        "seed": seed,
        "looks": looks,
        "control": True,
        "reference": REFERENCE,
        "name": "quick",
    }
    plan = hparams_plan([RECIPE], CONTENDERS, OPTIMS, draws=draws or FEWEST, **make, **settings)
    if draws is not None:
        return plan, f"{draws} draws, as asked"
    cost = sum(trial_seconds(g.config) for g in plan.groups)
    fitting = math.floor(seconds * workers / cost)
    chosen = min(MOST, max(FEWEST, fitting))
    if chosen != plan.draws:
        settings["train.precision"] = plan.groups[0].config.train.precision
        plan = hparams_plan([RECIPE], CONTENDERS, OPTIMS, draws=chosen, **make, **settings)
    why = (
        f"{chosen} draws a contender and optimizer: one costs about {cost:.0f} core seconds here "
        f"over {len(plan.groups)} trials, and {seconds:.0f} s on {counted(workers, 'worker')} "
        f"allow {fitting}"
    )
    if fitting < FEWEST:
        why += f"; fewer than {FEWEST} would show nothing, so it takes longer"
    return plan, why


def _keep_contenders(settings: Mapping[str, Any]) -> None:
    """A stem for all would make a ViT_P of the ViT_C, under its name."""
    for name, value in settings.items():
        if name == "model":
            instead = f"--models {value} {REFERENCE} --optims {' '.join(OPTIMS)}"
        elif name == "optim":
            instead = f"--models {CONTENDERS[0]} {REFERENCE} --optims {value}"
        elif name == "model.stem":
            instead = f"--models {REFERENCE} --stems conv patchify {value}"
        elif name.startswith("model.stem."):
            instead = f"--models MODEL --{name} {value}"
        else:
            continue
        raise ConfigError(
            f"--{name} has no effect in vitc study quick, which compares the models "
            f"{', '.join(CONTENDERS)}, each with its own stem, under {' and '.join(OPTIMS)}.",
            f"Choose contenders yourself: vitc study hparams {RECIPE} {instead}",
        )


def trial_seconds(config: RunConfig) -> float:
    """About how long one trial takes on one worker, from a few real steps."""
    from vitc.data.dataset import open_data
    from vitc.training.device import pick_device
    from vitc.training.probe import probe

    data = open_data(config.data, config.model.in_chans)
    measured = probe(config, data, pick_device(config.train.device), seconds=0.3)
    assert measured is not None, "a tiny model always fits"
    steps = len(data.splits["train"]) // config.train.batch * config.train.epochs
    return steps * measured.step_seconds * OVERHEAD
