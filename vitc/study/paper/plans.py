"""The plans of the paper's figures and tables, and what they would cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.models.zoo import MODELS
from vitc.resolve import load_config, resolve_config
from vitc.study.controls import family_ranges
from vitc.study.design import HPARAMS, Group, Plan
from vitc.study.effect import check_effect
from vitc.study.measures.base import best_of_draws, length_points, measure_plan
from vitc.study.measures.hparams import ranges_text
from vitc.study.paper.exhibits import CLASSES, Entry, Name, get_exhibit, scale_of
from vitc.study.paper.numbers import TABLE2
from vitc.study.studies import Stage, after_tuning
from vitc.study.study_folder import StudyFolder
from vitc.study.tuning import UNTUNED, Points, Tuned, check_draws, tuning_plan


def entry_groups(entries: Sequence[Entry], data: str | None, **overrides: Any) -> list[Group]:
    """One group a contender and optimizer. `data` is the folder of images where a recipe needs one.

    Raises ConfigError.
    """
    found = []
    for entry in entries:
        for optim in entry.optims:
            settings = {**entry.settings, **overrides}
            if data is not None:
                settings["data.path"] = data
            if optim in entry.rates:
                lr, decay = entry.rates[optim]
                settings = {"optim.lr": lr, "optim.weight_decay": decay, **settings}
            config = load_config(resolve_config(entry.recipe, optim=optim, **settings))
            found.append(Group(contender=entry.label, optim=optim, config=config))
    return found


def draws_plan(
    groups: Sequence[Group],
    points: Points,
    *,
    draws: int,
    name: str,
    seed: int = 0,
    classes: int | None = None,
    **plan: Any,
) -> Plan:
    """Random draws at one length, ViTs and CNNs each from their family's ranges as in the paper.

    `plan` holds further fields of `Plan`.
    """
    found = tuning_plan(groups, points, draws=draws, name=name, seed=seed, classes=classes)
    own = [
        dataclasses.replace(g, ranges=ranges)
        if (ranges := family_ranges(g.config, g.optim)) != found.ranges[g.optim]
        else g
        for g in found.groups
    ]
    return dataclasses.replace(found, groups=tuple(own), **plan).checked()


def exhibit_plan(
    label: str,
    scale: Name,
    groups: Sequence[Group],
    *,
    count: int | None = None,
    lengths: Sequence[int] | None = None,
    tuned: Tuned = UNTUNED,
    classes: int | None = None,
    **plan: Any,
) -> Plan:
    """The measured plan of an exhibit; `plan` holds its `seed` and `name`. Raises ConfigError."""
    exhibit = get_exhibit(label)
    s = scale_of(exhibit, scale)
    points = length_points(lengths or s.lengths)
    settings: dict[str, Any] = {
        "name": label,
        "exhibit": f"{label} {scale}",
        "about": (f"{exhibit.title}: {exhibit.about}", *tuned.about),
        "reference": s.reference,
        "classes": classes,
        **plan,
    }
    runs = count or s.count
    if exhibit.measure == HPARAMS:
        found = draws_plan(groups, points, draws=runs, **settings)
    else:
        found = measure_plan(exhibit.measure, groups, points, seeds=runs, tuned=tuned, **settings)
    if scale == "full" and found.classes != CLASSES["full"]:
        other = (
            f"The images are of {found.classes} classes, so they are not ImageNet-1k: the "
            "paper's numbers are of another task and cannot be compared."
        )
        found = dataclasses.replace(found, about=(*found.about, other))
    return found


def exhibit_stages(
    label: str,
    scale: Name,
    groups: Sequence[Group],
    folder: StudyFolder,
    *,
    tune: int | None = None,
    dry: bool = False,
    settings: Mapping[str, Any] = {},
    **plan: Any,
) -> Iterator[Stage]:
    """The studies of an exhibit, one after the other, as `studies.stages`.

    `tune` draws instead of the exhibit's own number; `settings`: those asked for, which must take
    effect; `plan` as of `exhibit_plan`.
    """
    s = scale_of(get_exhibit(label), scale)
    draws = tune or s.tune
    if tune and not s.tune:
        raise ConfigError(f"--tune has no effect with {label}: the paper's rates are used.")
    plan["name"] = folder.path.name
    measured = exhibit_plan(label, scale, groups, **plan)  # its mistakes, before a budget is spent
    if not folder.exists():
        check_effect(settings, measured.groups)
    if not draws:
        yield folder, folder.joined(measured)
        return
    check_draws(folder, draws, "tune")
    # precision auto, which is measured, once for both
    groups = [
        g.with_config(load_config(g.config, **{"train.precision": p.config.train.precision}))
        for g, p in zip(groups, measured.groups, strict=False)
    ]
    epochs = max(1, min(s.tune_epochs, *(plan.get("lengths") or s.lengths)))
    tuning = best_of_draws(draws, epochs)
    first = draws_plan(
        groups,
        tuning.points,
        draws=draws,
        name=f"{folder.path.name} tuning",
        seed=plan.get("seed", 0),
        classes=plan.get("classes"),
    )
    yield from after_tuning(
        tuning, folder, first, dry, lambda t: exhibit_plan(label, scale, groups, tuned=t, **plan)
    )


# -- what it would cost ----------------------------------------------------------------------------


def minutes(config: RunConfig) -> tuple[float, bool] | None:
    """(minutes an ImageNet epoch on 8 V100, whether the paper prints them for this very model).

    A model without printed time takes that of the one with the same recipe, times their blocks.
    """
    name = config.model.name
    if name in TABLE2:
        return TABLE2[name].minutes, True
    twin = "vit_p_4gf" if name.startswith("vit_p") else "vit_c_4gf"
    if not (name.startswith("vit_") and name.endswith("gf")):
        return None
    mine, theirs = config.model, MODELS[twin]
    blocks = getattr(mine, "depth", 1) / getattr(theirs, "depth", 1)
    return TABLE2[twin].minutes * blocks, False


def cost_lines(plans: Sequence[Plan]) -> list[str]:
    """Runs, epochs and the paper's time, a line a contender, then the sum."""
    lines, total, runs, guessed, unknown_time = [], 0.0, 0, False, False
    for plan in plans:
        for contender, optim in dict.fromkeys((g.contender, g.optim) for g in plan.groups):
            mine = [g for g in plan.groups if (g.contender, g.optim) == (contender, optim)]
            epochs = [g.config.train.epochs for g in mine]
            known = minutes(mine[0].config)
            runs += plan.draws * len(mine)
            c = mine[0].config
            drawn = plan.ranges_of(mine[0])
            rates = ranges_text(drawn)
            rates = rates or f"lr {c.optim.lr:g}, weight_decay {c.optim.weight_decay:g}"
            text = (
                f"{contender}, {optim}: {plan.draws} x {' + '.join(map(str, epochs))} epochs, "
                f"batch {c.train.batch}, {rates}"
            )
            if known is None:
                unknown_time = True
            else:
                hours = plan.draws * sum(epochs) * known[0] / 60
                guessed |= not known[1]
                total += hours
                text += f"; {'' if known[1] else 'about '}{hours:,.0f} h"
            lines.append(text)
    sums = f"{runs} runs"
    if total:
        sums += (
            f", {total:,.0f} h on the paper's 8 V100 (32 GB), {8 * total:,.0f} GPU hours, by its "
            "minutes an epoch"
            + (" (about: scaled by blocks where it prints none)" if guessed else "")
        )
    if unknown_time:
        sums += "; of small models the paper prints no time"
    return [*lines, f"{sums}."]
