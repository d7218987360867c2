"""Were trials re-made to the same numbers? Two trials.csv, joined by contender, point and draw.

    python scripts/compare_trials.py docs/results/quick64/trials.csv studies/again/report/trials.csv

Exits with 1 where a shared trial has another status or error, or none is shared.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

KEPT = ("status", "error", "error_raw", "error_best_epoch", "steps")
WHICH = ("contender", "optim", "point", "draw", "seed")
ENDED = ("done", "diverged")


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["status"] in ENDED]
    return {" ".join(f"{key} {r[key]}" for key in WHICH if r[key]): r for r in rows}


def main(first: str, second: str) -> int:
    a, b = read(Path(first)), read(Path(second))
    shared = sorted(a.keys() & b.keys())
    other = [t for t in shared if any(a[t][k] != b[t][k] for k in KEPT)]
    for t in other:
        changed = [f"{k} {a[t][k]} and {b[t][k]}" for k in KEPT if a[t][k] != b[t][k]]
        print(f"{t}: {'; '.join(changed)}")
    equal = len(shared) - len(other)
    print(f"{len(shared)} shared trials of {len(a)} and {len(b)}: {equal} equal, {len(other)} not")
    return int(bool(other) or not shared)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
