"""What a reviewer asks for: contenders derived from those of a study, and other ranges.

Each control answers "is it really the stem?": the ViT_P with more tokens, either model with the
other's number of blocks, the norms exchanged, a stem that does not learn, as much time instead of
as many flops, and draws from somewhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.recipes.ranges import study_ranges
from vitc.resolve import load_config
from vitc.study.contenders import twin_of
from vitc.study.design import Group, Range

CONTROL_NAMES = (
    "smaller_patch",
    "swap_depth",
    "bn_patchify",
    "ln_conv",
    "frozen_patchify",
    "time_matched",
)
RangeRule = Literal["shared", "separate", "union"]
BENCH_STEPS = 10


def control_groups(
    groups: Sequence[Group], names: Sequence[str], reference: str, old: Sequence[Group] = ()
) -> list[Group]:
    """The further contenders that these controls (`CONTROL_NAMES`) ask for.

    `old` are the groups of the study where it was begun: what was measured then stays. Raises
    ConfigError: a control that no contender allows.
    """
    found: list[Group] = []
    for name in names:
        if name == "time_matched":
            new = _time_matched(groups, reference, old)
        else:
            changes = [(group, _change(name, group.config)) for group in groups]
            new = [_with(group, *change) for group, change in changes if change is not None]
        if not new:
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect: it fits none of "
                f"{', '.join(dict.fromkeys(g.contender for g in groups))}."
            )
        found += new
    return found


def _with(group: Group, what: str, settings: Mapping[str, Any]) -> Group:
    config = load_config(group.config, **settings)
    named = dataclasses.replace(group, contender=f"{group.contender}, {what}")
    return named.with_config(config)


def _change(control: str, config: RunConfig) -> tuple[str, dict[str, Any]] | None:
    """What a control calls its contender and sets; None: it does not fit this model."""
    model, twin = config.model, twin_of(config.model)
    stem = getattr(model, "stem", None)
    if control == "swap_depth" and isinstance(model, ViTConfig) and isinstance(twin, ViTConfig):
        change = f"{twin.depth} blocks", {"model.depth": twin.depth}
        return None if model.depth == twin.depth else change
    if control == "ln_conv" and isinstance(stem, ConvStemConfig) and stem.norm != "ln":
        return "ln", {"model.stem.norm": "ln"}
    if not isinstance(stem, PatchifyStemConfig):
        return None
    half, odd = divmod(stem.patch_size, 2)
    if control == "smaller_patch" and not odd:
        return f"patch {half}", {"model.stem.patch_size": half}
    if control == "bn_patchify" and not stem.bn_relu:
        return "bn", {"model.stem.bn_relu": True}
    if control == "frozen_patchify":  # as Chen et al. (arXiv 2104.02057) did for ViT_P
        return "frozen stem", {"train.freeze": (*config.train.freeze, "stem")}
    return None


def _time_matched(groups: Sequence[Group], reference: str, old: Sequence[Group]) -> list[Group]:
    """Contenders trained for as long as the reference takes, not for as many epochs.

    The ratio of their steps is measured here, once: a study that is continued keeps its epochs.
    """
    known = {(g.contender, g.optim): g.config.train.epochs for g in old}
    found = []
    for group in groups:
        if group.contender == reference:
            continue
        base = next(g for g in groups if (g.contender, g.optim) == (reference, group.optim))
        label = f"{group.contender}, time-matched"
        epochs = known.get((label, group.optim))
        if epochs is None:
            ratio = _step_ms(base) / _step_ms(group)
            epochs = max(1, round(group.config.train.epochs * ratio))
        found.append(_with(group, "time-matched", {"train.epochs": epochs}))
    return found


def _step_ms(group: Group) -> float:
    from vitc.study.bench import bench

    settings = {"train.threads": 1, "train.precise_bn_images": 0}
    config = load_config(group.config, **settings)
    if config.train.precision == "auto":
        config = load_config(config, **{"train.precision": "fp32"})
    return bench(config, warm_up=3, timed=BENCH_STEPS).step.median


# -- ranges ----------------------------------------------------------------------------------------


def family_ranges(config: RunConfig, optim: str) -> dict[str, Range]:
    """The ranges of `recipes.ranges` for one config."""
    own = study_ranges(config, optim)
    return {name: Range(low=low, high=high) for name, (low, high) in own.items()}


def shifted(ranges: Mapping[str, Range], octave: Literal["up", "down"] | None) -> dict[str, Range]:
    """Log ranges times or over two; uniform ones have no octave and stay."""
    factor = {"up": 2.0, "down": 0.5, None: 1.0}[octave]
    return {
        n: dataclasses.replace(r, low=r.low * factor, high=r.high * factor) if r.log else r
        for n, r in ranges.items()
    }


def with_range_rule(
    groups: Sequence[Group],
    shared: Mapping[str, Mapping[str, Range]],
    rule: RangeRule,
    asked: Mapping[str, Mapping[str, Range]],
) -> tuple[list[Group], dict[str, dict[str, Range]]]:
    """Groups and shared ranges by a rule.

    shared: all from the first recipe's; separate: each contender from its own recipe's, at the same
    quantiles; union: all from the least to the greatest of everybody's own. A range that the user
    gave himself (`asked`, by optimizer and setting) is everybody's under each rule.

    Raises ConfigError: a union where somebody has no range of a setting, as of a weight decay of 0.
    """
    ranges = {optim: dict(rs) for optim, rs in shared.items()}
    if rule == "shared":
        return list(groups), ranges
    own = {id(g): family_ranges(g.config, g.optim) for g in groups}
    new = [dataclasses.replace(g, ranges={**own[id(g)], **asked.get(g.optim, {})}) for g in groups]
    if rule == "separate":
        return new, ranges
    return list(groups), {optim: _union(new, optim) for optim in ranges}


def _union(groups: Sequence[Group], optim: str) -> dict[str, Range]:
    """From the least to the greatest of what the groups of an optimizer draw each setting from."""
    own = {g.contender: g.ranges or {} for g in groups if g.optim == optim}
    found: dict[str, Range] = {}
    for name in dict.fromkeys(n for ranges in own.values() for n in ranges):
        lacking = [contender for contender, ranges in own.items() if name not in ranges]
        if lacking:
            raise ConfigError(
                f"--ranges union: {', '.join(lacking)} under {optim} has no range of {name} that "
                "others draw: its own value is 0, around which none lies.",
                f"Give one for all, --range {name} LOW HIGH, or use --ranges shared or separate.",
            )
        every = [ranges[name] for ranges in own.values()]
        low, high = min(r.low for r in every), max(r.high for r in every)
        found[name] = dataclasses.replace(every[0], low=low, high=high)
    return found
