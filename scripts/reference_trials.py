"""Run the reference trials of `vitc study card` and write them into the package.

    python scripts/reference_trials.py [A B C]      about 15 minutes of one core a set

Resumable: trials that ended are kept in studies/reference. The file holds the sets that are
complete. They are made again where a change of the code changes
results.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from vitc.files import write_atomically
from vitc.machine import environment
from vitc.study.design import Plan
from vitc.study.launch import LocalEngine
from vitc.study.results import results_of
from vitc.study.runner import conduct
from vitc.study.screening import BUDGET, EPOCHS, SEEDS, SHORT, reference_plan
from vitc.study.study_folder import StudyFolder

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "vitc" / "study" / "reference" / "trials.json"


def main(names: list[str], studies: Path) -> None:
    record: dict[str, Any] = {"sets": {}}
    if FILE.exists():
        record = json.loads(FILE.read_text())
    record |= {
        "schema": 1,
        "made": time.strftime("%Y-%m-%d"),
        "command": "python scripts/reference_trials.py",
        "environment": environment(),
        "budget": BUDGET,
    }
    for name in names:
        runs: dict[str, Any] = {}
        for epochs in (EPOCHS, SHORT):
            plan = reference_plan(name, epochs)
            folder = StudyFolder(studies / f"{name}_{epochs}")
            conduct(folder, plan, engine=LocalEngine(workers=1))
            stored, _ = folder.read()  # whose trials have the names of the version that began it
            runs[str(epochs)] = _errors(folder, stored)
        values = {
            optim: [list(plan.draw_values(optim, i).values()) for i in range(plan.draws)]
            for optim in plan.optims
        }
        settings = {optim: list(plan.ranges[optim]) for optim in plan.optims}
        record["sets"][name] = {"settings": settings, "values": values, "epochs": runs}
        record["sets"] = dict(sorted(record["sets"].items()))
        text = json.dumps(record, indent=1)
        FILE.parent.mkdir(exist_ok=True)
        write_atomically(FILE, _lists_on_one_line(text) + "\n")


def _errors(folder: StudyFolder, plan: Plan) -> dict[str, Any]:
    """Contender -> optimizer -> the errors by draw, and the draws that failed to learn."""
    found: dict[str, Any] = {}
    for r in results_of(folder, plan):
        if r.error is None:
            raise SystemExit(f"{r.contender} under {r.optim}, draw {r.draw}: {r.status}. {r.note}")
        group = found.setdefault(r.contender, {}).setdefault(r.optim, {"errors": [], "failed": []})
        group["errors"].append(r.error)
        group["failed"] += [r.draw] if r.failed_to_learn else []
    return found


def _lists_on_one_line(text: str) -> str:
    import re

    return re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text)


if __name__ == "__main__":
    main(sys.argv[1:] or list(SEEDS), ROOT / "studies" / "reference")
