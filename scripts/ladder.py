"""What the batch ladder's plan asks (docs/results/plans.md): what SGD costs each stem at one batch.

    python scripts/ladder.py studies/ladder256
    python scripts/ladder.py studies/ladder1024 studies/ladder1024_sgd

Of an optimizer that several studies have, the last one's trials count.
A contender's error under an optimizer is the mean of its four lowest of all draws, a run that
failed to learn counting as chance; gap = SGD minus AdamW. Primary: gap of ViT_P minus gap of ViT_C,
with a 95 % interval from 10,000 resamplings of the draws, by number jointly for all contenders and
for each optimizer by itself. The same for the control.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitc.study.results import results_of
from vitc.study.study_folder import StudyFolder

LOWEST, RESAMPLINGS = 4, 10_000
PAIRS = (("vit_p_tiny", "vit_c_tiny"), ("vit_p_tiny", "vit_p_tiny again"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="+")
    errors: dict[tuple[str, str], NDArray[np.float64]] = {}
    for folder in map(StudyFolder, parser.parse_args().studies):
        plan, _ = folder.read()
        results = results_of(folder, plan)
        missing = sum(r.status not in ("done", "diverged") for r in results)
        if missing:
            raise SystemExit(
                f"{folder.path}: {missing} trials have no result yet, and the plan knows no looks "
                "in between."
            )
        rows: dict[tuple[str, str], NDArray[np.float64]] = {}
        for r in results:
            row = rows.setdefault((r.contender, r.optim), np.full(plan.draws, np.nan))
            row[r.draw] = plan.chance_error if r.failed_to_learn else r.error
        errors |= rows
    for (contender, optim), row in sorted(errors.items()):
        failed, best = int((row >= plan.chance_error).sum()), _best(row[None])[0]
        print(f"{contender:>17} {optim:>5}: {best:5.1f} %, {failed} of {row.size} failed")
    rng = np.random.default_rng(0)
    draws = plan.draws
    drawn = {o: rng.integers(0, draws, (RESAMPLINGS, draws)) for o in ("adamw", "sgd")}
    for reference, other in PAIRS:
        if (other, "sgd") not in errors:
            continue
        own, others = _gap(errors, reference, {}), _gap(errors, other, {})
        spread = _gap(errors, reference, drawn) - _gap(errors, other, drawn)
        low, high = np.quantile(spread, (0.025, 0.975))
        print(
            f"gap of {reference} ({own[0]:+.1f}) minus gap of {other} ({others[0]:+.1f}): "
            f"{own[0] - others[0]:+.1f} points ({low:+.1f} to {high:+.1f})"
        )


def _best(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamplings, draws) -> the mean of the lowest of each row."""
    found: NDArray[np.float64] = np.sort(errors, axis=1)[:, :LOWEST].mean(axis=1)
    return found


def _gap(
    errors: dict[tuple[str, str], NDArray[np.float64]],
    contender: str,
    drawn: dict[str, NDArray[np.int64]],
) -> NDArray[np.float64]:
    """What SGD costs, for each resampling; `drawn` empty: of the draws as they are."""
    every = np.arange(errors[contender, "sgd"].size)[None]
    sgd, adamw = (_best(errors[contender, o][drawn.get(o, every)]) for o in ("sgd", "adamw"))
    return sgd - adamw


if __name__ == "__main__":
    main()
