"""Random draws of hyper-parameters: how good is the best of k, and is one contender better?

Every contender is trained on the same draws (paper sections 4 and 5.3), so contenders are compared
draw by draw, and each one's error distribution is shown whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vitc.config import leaves
from vitc.errors import ConfigError, suggest
from vitc.models.config import (
    CNNConfig,
    ModelConfig,
    TimmConfig,
    TorchvisionConfig,
    ViTConfig,
)
from vitc.optim.optimizers import OPTIMIZERS
from vitc.resolve import resolve_config
from vitc.stats.proportions import Interval
from vitc.study.contenders import (
    OWN_OPTIM,
    Request,
    again,
    count_classes,
    differ_by_design,
    for_study,
    groups_asked,
    one_precision,
    reference_of,
)
from vitc.study.contrasts import contrast_table, controls, verdict
from vitc.study.controls import control_groups, family_ranges, shifted, with_range_rule
from vitc.study.design import Group, Plan, Range
from vitc.study.effect import check_drawn
from vitc.study.measures.base import Measure, Option, request_of
from vitc.study.measures.draws import GroupDraws, compare_draws, draws_warnings, groups_of_draws
from vitc.study.measures.targets import profiles, target_table, target_values
from vitc.study.results import Finding, Result, unsuccessful
from vitc.study.tuning import UNTUNED, Tuned
from vitc.views.model import Table
from vitc.wording import bounds


class Hparams(Measure):
    """Trials with random settings, the same for every contender."""

    name = "hparams"
    summary = "Train contenders on the same random draws of lr, weight decay or any setting."
    example = (
        "vitc study hparams fashion_vit_p --models vit_c_tiny vit_p_tiny --draws 16\n"
        "vitc study hparams fashion_vit_p --stems conv patchify my.py:MyStem\n"
        "vitc study hparams cifar10_vit_c cifar10_vit_p --data ~/cifar10 --optims adamw sgd\n"
        "vitc study hparams debug --range optim.lr 1e-4 1e-2 --linear-range optim.clip_norm 0.5 2"
    )
    options = (
        Option(
            name="range",
            words=3,
            repeated=True,
            metavar=("SETTING", "LOW", "HIGH"),
            help="draw SETTING log-uniformly; OPTIM:SETTING for one optimizer. Default: lr and "
            "weight decay, from the paper's ranges or [c/8, 4c] around the recipe's own",
        ),
        Option(
            name="linear_range",
            words=3,
            repeated=True,
            metavar=("SETTING", "LOW", "HIGH"),
            help="the same, uniformly",
        ),
        Option(
            name="ranges",
            default="shared",
            choices=("shared", "separate", "union"),
            help="one range for all, the first recipe's whatever the models (default); each "
            "contender's own recipe's; or all of them together",
        ),
        Option(name="octave", choices=("up", "down"), help=""),  # see docs/paper.md
    )
    runs = "draws"
    default_runs = 16
    joins = True

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        """Contenders on the same draws, from the ranges of the first recipe, whatever their models:
        what is shared may suit one better than another, which `range_lines` points out."""
        o, settings = request.options, request.settings
        plain = groups_asked(request)
        reference = reference_of(plain, request.reference, request.begun)
        plain += control_groups(plain, request.controls, reference, request.begun)
        groups = [g.with_config(for_study(g.config)) for g in plain]
        groups = one_precision([*groups, *(again(groups, reference) if request.control else [])])
        # of the recipe itself: a contender's setting, such as one of its stem, need not be one of
        # its own
        kept = {n: v for n, v in settings.items() if n.startswith("optim.")}
        asked = _asked_ranges(request)
        ranges = {}
        for label in dict.fromkeys(g.optim for g in plain):
            optim = request.optims[0] if label == OWN_OPTIM else label
            asked[label] = asked[optim]
            recipe = resolve_config(request.recipes[0], optim=optim, **kept)
            ranges[label] = {**family_ranges(recipe, optim), **asked[optim]}
        groups, ranges = with_range_rule(groups, ranges, o["ranges"], asked)
        groups = [_with_own_ranges(g, request.optims[0], asked) for g in groups]
        if not request.begun:
            _check_drawn(request, groups, ranges, asked)
        if o["octave"] is not None:
            ranges = {optim: shifted(rs, o["octave"]) for optim, rs in ranges.items()}
            groups = [
                g
                if g.ranges is None
                else dataclasses.replace(g, ranges=shifted(g.ranges, o["octave"]))
                for g in groups
            ]
        return Plan(
            name=request.name,
            groups=tuple(groups),
            ranges=ranges,
            draws=request.runs,
            seed=request.seed,
            reference=reference,
            classes=count_classes(groups[0].config),
            looks=max(request.looks, 1),
            margin=request.margin,
            differ=differ_by_design(request),
        ).checked()

    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        groups = groups_of_draws(plan, results)
        found = compare_draws(plan, groups)
        first = contrast_table(found, "What the study shows", plan)
        reached = profiles(plan, groups)
        return Finding(
            verdict=verdict(found, plan),
            remarks=controls(found, plan),
            tables=[*first, _contenders_table(groups), *target_table(reached)],
            charts=[],
            values={
                "groups": [_group_values(g) for g in groups],
                "comparisons": [c.values for c in found],
                "time_to_target": target_values(reached),
            },
            warnings=[*draws_warnings(groups), *unsuccessful(plan, results)],
            draws=tuple(groups),
            contrasts=tuple(found),
            compare=lambda pairs: compare_draws(plan, groups, pairs),
        )


def hparams_plan(
    recipes: Sequence[str], models: Sequence[str], optims: Sequence[str], **words: Any
) -> Plan:
    """The plan of a request, by the keywords of `vitc.study.run`. Raises ConfigError."""
    words["runs"] = words.pop("draws")
    measure = Hparams()
    request = request_of(measure, recipes=recipes, models=models, optims=optims, **words)
    return measure.plan(request)


def _with_own_ranges(group: Group, optim: str, asked: Mapping[str, Mapping[str, Range]]) -> Group:
    """Under `OWN_OPTIM`: a contender with another optimizer of the package draws from that one's
    ranges, at the same quantiles; a custom one from the study's."""
    own = next(k for k, cls in OPTIMIZERS.items() if type(group.config.optim) is cls)
    if group.optim != OWN_OPTIM or group.ranges is not None or own in (optim, "custom"):
        return group
    ranges = {**family_ranges(group.config, own), **asked[OWN_OPTIM]}
    return dataclasses.replace(group, ranges=ranges)


def _check_drawn(
    request: Request,
    groups: Sequence[Group],
    ranges: Mapping[str, Mapping[str, Range]],
    asked: Mapping[str, Mapping[str, Range]],
) -> None:
    """Raises ConfigError: a value that draws replace, of all or of a contender."""
    every = [set(asked[g.optim]) for g in groups]
    lost = [n for n in request.settings if all(n in names for names in every)]
    if lost:
        raise ConfigError(
            f"{lost[0]} {request.settings[lost[0]]} has no effect: every trial draws {lost[0]} "
            "from the range that --range or --linear-range gives.",
            "Leave one of the two out.",
        )
    for n in request.settings:
        if all(n in (g.ranges or ranges[g.optim]) and not _follows(g, n) for g in groups):
            raise ConfigError(
                f"{n} {request.settings[n]} has no effect: every trial draws {n} from the paper's "
                "range, which does not depend on it.",
                f"Leave it out, or set the range: --range {n} LOW HIGH. Fixed values: vitc study "
                "vary.",
            )
    shared = request.options["ranges"] == "shared"
    drawn: dict[str, set[str]] = {}
    for g in groups:
        others = shared and g.ranges is None  # from the recipe's values, not from its own
        drawn.setdefault(g.contender, set()).update(ranges[g.optim] if others else asked[g.optim])
    instead = (
        "Ranges around each contender's own value: --ranges separate; one range for all: --range "
        "SETTING LOW HIGH; fixed values: vitc study vary."
    )
    check_drawn(request.contenders, drawn, instead)


def _follows(group: Group, name: str) -> bool:
    """Whether the range that a setting is drawn from moves with its value."""
    optim = group.config.optim
    twice = {name.removeprefix("optim."): 2 * leaves(group.config)[name]}
    other = dataclasses.replace(group.config, optim=dataclasses.replace(optim, **twice))
    own, moved = (family_ranges(c, group.optim) for c in (group.config, other))
    return own.get(name) != moved.get(name)


def _asked_ranges(request: Request) -> dict[str, dict[str, Range]]:
    """The ranges that a user gave, by optimizer. Raises ConfigError: a bound is no number."""
    found: dict[str, dict[str, Range]] = {optim: {} for optim in request.optims}
    for option, log in (("range", True), ("linear_range", False)):
        for name, low, high in request.options[option]:
            prefix, colon, setting = name.rpartition(":")
            if colon and prefix not in found:
                raise ConfigError(
                    f"The range {name} is for optimizer {prefix!r}, which is not in the study."
                    f"{suggest(prefix, found)}",
                    f"In the study: {', '.join(found)}.",
                )
            try:
                new = Range(low=float(low), high=float(high), log=log)
            except ValueError:
                raise ConfigError(
                    f"The range {name} {low} {high} needs two numbers.",
                    "For example: --range optim.lr 1e-4 1e-2",
                ) from None
            for optim in [prefix] if colon else request.optims:
                found[optim][setting] = new
    return found


def range_lines(plan: Plan, recipe: str, rule: str = "shared") -> list[str]:
    """What the contenders draw from, and whom it was not made for: shown before a study runs.

    `recipe` is the one that the shared ranges come from.
    """
    own = [g for g in plan.groups if g.ranges is not None]
    if len(own) == len(plan.groups):
        same = all(g.ranges == plan.ranges[g.optim] for g in own)
        return (
            [
                f"--ranges {rule} changes nothing here: a contender's own ranges are its recipe's, "
                "and all are the same."
            ]
            if same
            else ["Each contender draws from its own recipe's ranges, at the same quantiles."]
        )
    drawn = "; ".join(f"{optim}: {ranges_text(ranges)}" for optim, ranges in plan.ranges.items())
    lines = [f"{'Other' if own else 'All'} contenders draw from the same ranges, {drawn}."]
    for g in own:  # with another optimizer than theirs
        lines.insert(
            0, f"{g.contender} draws from ranges of its optimizer: {ranges_text(g.ranges or {})}."
        )
    if rule != "shared":
        return lines
    first = resolve_config(recipe).model
    strangers = dict.fromkeys(
        g.contender for g in plan.groups if _family(g.config.model) != _family(first)
    )
    if strangers:
        lines.append(
            f"They come from {recipe}, the recipe of a {_family(first)}, and may not suit "
            f"{', '.join(strangers)}. With a recipe of its own and --ranges separate a contender "
            "draws from ranges of its own; --range SETTING LOW HIGH sets those of all."
        )
    return lines


def ranges_text(ranges: Mapping[str, Range]) -> str:
    """`lr 0.0001 to 0.01, weight_decay 0.01 to 1`; empty: nothing is drawn."""
    return ", ".join(
        f"{n.removeprefix('optim.')} {r.low:g} to {r.high:g}" for n, r in ranges.items()
    )


def _family(model: ModelConfig) -> str:
    families = {ViTConfig: "ViT", CNNConfig: "CNN", TimmConfig: "model of timm"}
    families[TorchvisionConfig] = "model of torchvision"
    return families.get(type(model), "custom model")


# -- tables and values -----------------------------------------------------------------------------


def _contenders_table(groups: Sequence[GroupDraws]) -> Table:
    rows = [
        {
            "contender": g.contender,
            "optimizer": g.optim,
            "draws": str(len(g.errors)),
            "failed to learn": str(g.failed_to_learn),
            "failed": str(g.count("failed")),
            "best error %": f"{g.best.error:.2f}" if g.best and g.best.error is not None else "-",
            "test error % of that draw (95 %)": _test(g.test),
            "best settings": _settings(g.best),
            "median error % where it learnt (95 %)": interval_text(g.median),
            "Mflops": f"{g.cost.flops / 1e6:,.1f}" if g.cost else "-",
            "params": f"{g.cost.params:,}" if g.cost else "-",
            "activations": f"{g.cost.activations:,}" if g.cost else "-",
            "step ms": f"{g.step_ms:.1f}" if g.step_ms else "-",
            "memory MiB": f"{g.memory_mib:,.0f}" if g.memory_mib else "-",
            "s a trial": f"{g.seconds_a_trial:.1f}" if g.seconds_a_trial else "-",
        }
        for g in groups
    ]
    note = (
        "Flops are multiply-adds of one image's forward pass. Step time and memory are medians "
        "over the trials as they ran: several at a time on one machine slow each other down. "
        "Memory is the peak of the whole process on CPU, of the allocator on a GPU."
    )
    return Table.of("Contenders", rows, note)


def interval_text(i: Interval | None, digits: int = 1, dash: str = "-") -> str:
    """`30.1 (28.4-31.9)`, with ? for a bound that so few runs do not give."""
    if i is None:
        return "-"
    low, high = bounds((i.low, i.high), f".{digits}f")
    return f"{i.estimate:.{digits}f} ({low}{dash}{high})"


def _test(test: dict[str, Any]) -> str:
    if not test:
        return "not read"
    return f"{100 - test['top1']:.2f} ({100 - test['top1_high']:.1f}-{100 - test['top1_low']:.1f})"


def _settings(best: Result | None) -> str:
    if best is None:
        return "-"
    return ", ".join(f"{n.removeprefix('optim.')} {v:.3g}" for n, v in best.values.items())


def _group_values(g: GroupDraws) -> dict[str, Any]:
    t = g.tuning
    return {
        "contender": g.contender,
        "optim": g.optim,
        "n": len(g.errors),
        "failed_to_learn": g.failed_to_learn,
        "diverged": g.count("diverged"),
        "failed": g.count("failed"),
        "best_error": g.best.error if g.best else None,
        "best_values": g.best.values if g.best else None,
        "median_error": asdict(g.median) if g.median else None,
        "tuning_curve": t
        and {
            "draws": t.ks.tolist(),
            "mean": t.mean.tolist(),
            "low": t.mean_low.tolist(),
            "high": t.mean_high.tolist(),
        },
        "flops": g.cost and g.cost.flops,
        "params": g.cost and g.cost.params,
        "activations": g.cost and g.cost.activations,
        "step_ms": g.step_ms,
        "memory_mib": g.memory_mib,
        "test": g.test or None,
    }
