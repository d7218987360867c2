"""How many draws reach the error that half of the reference's draws reach, and how soon?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vitc.stats.profiles import Profile, time_to_target
from vitc.study.design import Plan
from vitc.study.measures.draws import GroupDraws
from vitc.views.model import Table

MOST_COLUMNS = 6  # evaluations shown; of more every second, third ...


def profiles(plan: Plan, groups: Sequence[GroupDraws]) -> list[tuple[GroupDraws, Profile]]:
    """The profile of each group at the evaluations of the reference under its optimizer.

    The target is the median final error of the reference's runs that learnt. Empty where runs were
    evaluated at their end only, or no run of the reference has learnt.
    """
    found = []
    for optim in plan.optims:
        mine = [g for g in groups if g.optim == optim and g.known]
        reference = next((g for g in mine if g.contender == plan.baseline), None)
        if reference is None or reference.median is None:
            continue
        learnt = [error for r, error in reference.known if not r.failed_to_learn]
        target = statistics.median(learnt)
        times = sorted({t for when, _ in reference.curves for t in when})
        if len(times) < 2:
            continue
        shown = times[:: -math.ceil(len(times) / MOST_COLUMNS)]  # the last one always
        found += [(g, time_to_target(g.curves, target, sorted(shown))) for g in mine]
    return found


def target_table(found: Sequence[tuple[GroupDraws, Profile]]) -> list[Table]:
    """One row a contender and optimizer, one column an evaluation; none without profiles."""
    columns = sorted({t for _, profile in found for t in profile.times})
    rows = []
    for g, profile in found:
        shares = dict(zip(profile.times, profile.shares, strict=True))
        row = {
            "contender": g.contender,
            "optimizer": g.optim,
            "target error %": f"{profile.target:.1f}",
            "draws": str(len(g.known)),
        }
        for t in columns:
            s = shares.get(t)
            row[f"by epoch {t:g}, %"] = (
                f"{100 * s.estimate:.0f} ({100 * s.low:.0f}-{100 * s.high:.0f})" if s else "-"
            )
        rows.append(row)
    note = (
        "Share of all draws that have reached the target, with 95 % intervals, each by itself. The "
        "target is the median final error of the reference where it learnt. Shares by the end, and "
        "sooner, count how many settings train well at all (AlgoPerf, arXiv 2306.07179)."
    )
    return [Table.of("Draws that reach the reference's median error", rows, note)] if rows else []


def target_values(found: Sequence[tuple[GroupDraws, Profile]]) -> list[dict[str, Any]]:
    """The same for results.json."""
    return [{"contender": g.contender, "optim": g.optim, **asdict(p)} for g, p in found]
