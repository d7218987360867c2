"""Random draws of hyper-parameters: how good is the best of k, and is one contender better?

Every contender is trained on the same draws (paper sections 4 and 5.3), so contenders are compared
draw by draw, and each one's error distribution is shown whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vitc.errors import ConfigError, suggest
from vitc.models.config import CNNConfig, ModelConfig, ViTConfig
from vitc.resolve import resolve_config
from vitc.stats import curves as st
from vitc.stats.proportions import Interval
from vitc.study.contenders import (
    Request,
    again,
    contenders_of,
    count_classes,
    for_study,
    one_precision,
    reference_of,
)
from vitc.study.controls import control_groups, family_ranges, shifted, with_range_rule
from vitc.study.design import Plan, Range
from vitc.study.measures.base import Measure, Option, request_of
from vitc.study.measures.draws import (
    LEVEL,
    WITHIN_POINTS,
    DrawsComparison,
    GroupDraws,
    compare_draws,
    draws_warnings,
    groups_of_draws,
)
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned
from vitc.views.model import Table


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
        Option(name="octave", choices=("up", "down"), help="all log ranges doubled, or halved"),
    )
    runs = "draws"
    default_runs = 16
    joins = True

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        """Contenders on the same draws, from the ranges of the first recipe, whatever their models:
        what is shared may suit one better than another, which `range_lines` points out."""
        o, settings = request.options, request.settings
        plain = contenders_of(
            request.recipes, request.models, request.optims, request.stems, **settings
        )
        reference = reference_of(plain, request.reference)
        plain += control_groups(plain, request.controls, reference, request.begun)
        groups = [g.with_config(for_study(g.config)) for g in plain]
        groups = one_precision([*groups, *(again(groups, reference) if request.control else [])])
        # of the recipe itself: a contender's setting, such as one of its stem, need not be one of
        # its own
        kept = {n: v for n, v in settings.items() if n.startswith("optim.")}
        asked = _asked_ranges(request)
        ranges = {}
        for optim in request.optims:
            recipe = resolve_config(request.recipes[0], optim=optim, **kept)
            ranges[optim] = {**family_ranges(recipe, optim), **asked[optim]}
        groups, ranges = with_range_rule(groups, ranges, o["ranges"], asked)
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
        ).checked()

    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        groups = groups_of_draws(plan, results)
        comparisons = compare_draws(plan, groups)
        tables = [_contenders_table(groups)]
        if comparisons:
            tables.append(_comparisons_table(comparisons))
        return Finding(
            sentences=[_verdict(plan, comparisons), *_readings(groups, comparisons)],
            tables=tables,
            charts=[],
            values={
                "groups": [_group_values(g) for g in groups],
                "comparisons": [_comparison_values(c) for c in comparisons],
            },
            warnings=draws_warnings(plan, groups),
            draws=tuple(groups),
        )


def hparams_plan(
    recipes: Sequence[str], models: Sequence[str], optims: Sequence[str], **words: Any
) -> Plan:
    """The plan of a request, by the keywords of `vitc.study.run`. Raises ConfigError."""
    words["runs"] = words.pop("draws")
    measure = Hparams()
    request = request_of(measure, recipes=recipes, models=models, optims=optims, **words)
    return measure.plan(request)


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
    own = [g.ranges for g in plan.groups if g.ranges is not None]
    if own:
        same = all(r == plan.ranges[g.optim] for r, g in zip(own, plan.groups, strict=True))
        return (
            [
                f"--ranges {rule} changes nothing here: a contender's own ranges are its recipe's, "
                "and all are the same."
            ]
            if same
            else ["Each contender draws from its own recipe's ranges, at the same quantiles."]
        )
    drawn = "; ".join(
        f"{optim}: "
        + ", ".join(
            f"{n.removeprefix('optim.')} {r.low:g} to {r.high:g}" for n, r in ranges.items()
        )
        for optim, ranges in plan.ranges.items()
    )
    lines = [f"All contenders draw from the same ranges, {drawn}."]
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


def _family(model: ModelConfig) -> str:
    return {ViTConfig: "ViT", CNNConfig: "CNN"}.get(type(model), "model of timm")


# -- sentences -------------------------------------------------------------------------------------


def _verdict(plan: Plan, comparisons: Sequence[DrawsComparison]) -> str:
    """Two sentences: what was found, with its interval; and what would change it."""
    rivals = [c for c in comparisons if not c.is_control]
    if len(plan.contenders) == 1:
        return (
            f"{plan.contenders[0]} is the only contender: it is compared with none. "
            "Another recipe, or --models with two names, would change that."
        )
    if not rivals:
        return (
            "There is nothing to compare yet: the reference and another contender need at least "
            "two shared draws with a result. More finished trials would change that."
        )
    mine = [c for c in rivals if c.contender == rivals[0].contender]
    text = "; ".join(map(_finding, mine))
    return f"{text[0].upper()}{text[1:]}. {_what_would_change(mine)}"


def _finding(c: DrawsComparison) -> str:
    d = c.difference
    size = (
        f"{_points(abs(d.estimate))} points (median paired difference; 95 % interval "
        f"{_bounds(d)}; {c.n} shared draws; Holm-corrected p {_p(c.p_holm)})"
    )
    better = "lower" if d.estimate < 0 else "higher"
    if c.p_holm >= LEVEL:
        text = (
            f"under {c.optim} no difference between {c.contender} and {c.reference} is shown: "
            f"{c.contender}'s error is {better} by {size}"
        )
    else:
        text = f"under {c.optim} {c.contender}'s error is {better} than {c.reference}'s by {size}"
    if c.crossings.beyond_noise:
        at = c.crossings.beyond_noise[0]
        text += f", but the distributions cross near {at.low:.0f}-{at.high:.0f} % error"
    return text


def _what_would_change(comparisons: Sequence[DrawsComparison]) -> str:
    open_ones = [c for c in comparisons if c.p_holm >= LEVEL]
    if not open_ones:
        return (
            "More draws from these ranges would hardly change the sign; another budget, other "
            "ranges or other data could, and none of those was tried here."
        )
    needs = [
        f"about {c.draws_needed} shared draws under {c.optim} (there are {c.n})"
        for c in open_ones
        if c.draws_needed and c.draws_needed > c.n
    ]
    if needs:
        return (
            f"More draws would change it: a difference of the size seen is found with 80 % power "
            f"by {' and '.join(needs)}, if it is real."
        )
    return (
        "More draws could change it, but what was seen gives no way to estimate how many; a "
        "longer budget or other ranges could as well."
    )


def _readings(groups: Sequence[GroupDraws], comparisons: Sequence[DrawsComparison]) -> list[str]:
    """Tuning curves and crossings in words, one sentence each."""
    found = []
    draws_of = {(g.contender, g.optim): len(g.errors) for g in groups}
    for c in comparisons:
        if c.is_control:
            verdict = (
                "no difference" if c.p_holm >= LEVEL else "A DIFFERENCE, which is noise or a fault"
            )
            found.append(
                f"Control: {c.contender} is {c.reference} with other seeds. Under {c.optim} it "
                f"shows {verdict}: {c.difference.estimate:+.2f} points, 95 % interval "
                f"{_bounds(c.difference, signed=True)}, p {_p(c.p_holm)}."
            )
            continue
        if c.reach is not None:
            found.append(_reach_sentence(c, c.reach, draws_of[c.reference, c.optim]))
        if c.crossings.seen:
            beyond = c.crossings.beyond_noise
            where = (beyond or c.crossings.seen)[0]
            found.append(
                f"Under {c.optim} the error distributions of {c.contender} and {c.reference} "
                f"cross ({'beyond' if beyond else 'within'} noise) between {where.low:.1f} and "
                f"{where.high:.1f} % error: neither is better at every quantile."
            )
    return found


def _reach_sentence(c: DrawsComparison, reach: st.Reach, draws: int) -> str:
    if not reach.draws:
        return (
            f"Under {c.optim}, {c.contender} does not reach with {draws} draws what "
            f"{c.reference} reaches with {draws} ({reach.target:.1f} % error)."
        )
    low = "1" if reach.low is None else str(reach.low)
    high = f"more than {draws}" if reach.high is None else str(reach.high)
    return (
        f"Under {c.optim}, {c.contender} with {reach.draws} draw{'s' if reach.draws > 1 else ''} "
        f"reaches what {c.reference} reaches with {draws} ({reach.target:.1f} % error; by the "
        f"bands, {low} to {high} draws)."
    )


def _points(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else f"{value:.2f}"


def _bounds(i: Interval, signed: bool = False) -> str:
    """The interval of a difference, as sizes on the side of the estimate, or signed."""
    signed = signed or i.low <= 0 <= i.high
    low, high = (i.low, i.high) if signed else sorted((abs(i.low), abs(i.high)))
    sign = "+" if signed else ""
    return " to ".join("unbounded" if math.isinf(x) else f"{x:{sign}.1f}" for x in (low, high))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


# -- tables and values -----------------------------------------------------------------------------


def _contenders_table(groups: Sequence[GroupDraws]) -> Table:
    rows = [
        {
            "contender": g.contender,
            "optimizer": g.optim,
            "draws": str(len(g.errors)),
            "diverged": str(g.count("diverged")),
            "failed": str(g.count("failed")),
            "best error %": f"{g.best.error:.2f}" if g.best and g.best.error is not None else "-",
            "test error % of that draw (95 %)": _test(g.test),
            "best settings": _settings(g.best),
            "median error % (95 %)": _interval(g.median),
            f"within {WITHIN_POINTS:g} points of the best": _share(g.share),
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
        "over the trials as they ran, several at a time on one machine; memory is the peak of the "
        "whole process on CPU, of the allocator on a GPU."
    )
    return Table.of("Contenders", rows, note)


def _interval(i: Interval | None) -> str:
    if i is None:
        return "-"
    low = "?" if math.isinf(i.low) else f"{i.low:.1f}"
    high = "?" if math.isinf(i.high) else f"{i.high:.1f}"
    return f"{i.estimate:.1f} ({low}-{high})"


def _test(test: dict[str, Any]) -> str:
    if not test:
        return "not read"
    return f"{100 - test['top1']:.2f} ({100 - test['top1_high']:.1f}-{100 - test['top1_low']:.1f})"


def _settings(best: Result | None) -> str:
    if best is None:
        return "-"
    return ", ".join(f"{n.removeprefix('optim.')} {v:.3g}" for n, v in best.values.items())


def _share(i: Interval | None) -> str:
    return "-" if i is None else f"{100 * i.estimate:.0f} % ({100 * i.low:.0f}-{100 * i.high:.0f})"


def _comparisons_table(comparisons: Sequence[DrawsComparison]) -> Table:
    rows = [
        {
            "contender": c.contender + (" (control)" if c.is_control else ""),
            "against": c.reference,
            "optimizer": c.optim,
            "shared draws": str(c.n),
            "median difference, points": f"{c.difference.estimate:+.2f}",
            "95 % interval": _bounds(c.difference, signed=True),
            "p": _p(c.p),
            "Holm p": _p(c.p_holm),
            "EDFs cross": "beyond noise"
            if c.crossings.beyond_noise
            else ("within noise" if c.crossings.seen else "no"),
        }
        for c in comparisons
    ]
    note = (
        "Difference of top-1 errors on the same draw; negative: the contender is better. "
        "Wilcoxon signed-rank tests, exact; Holm-corrected over all rows."
    )
    return Table.of("On shared draws", rows, note)


def _group_values(g: GroupDraws) -> dict[str, Any]:
    t = g.tuning
    return {
        "contender": g.contender,
        "optim": g.optim,
        "n": len(g.errors),
        "diverged": g.count("diverged"),
        "failed": g.count("failed"),
        "best_error": g.best.error if g.best else None,
        "best_values": g.best.values if g.best else None,
        "median_error": asdict(g.median) if g.median else None,
        "mean_error_clipped": asdict(g.area) if g.area else None,
        f"share_within_{WITHIN_POINTS:g}_points": asdict(g.share) if g.share else None,
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


def _comparison_values(c: DrawsComparison) -> dict[str, Any]:
    return {
        "contender": c.contender,
        "reference": c.reference,
        "optim": c.optim,
        "n": c.n,
        "paired_median_difference": asdict(c.difference),
        "p": c.p,
        "p_holm": c.p_holm,
        "edfs_cross": bool(c.crossings.seen),
        "edfs_cross_beyond_noise": bool(c.crossings.beyond_noise),
        "draws_needed_80_percent_power": c.draws_needed,
        "control": c.is_control,
    }
