"""How long do `vitc study status` and `vitc report` take on a large study?

    python benchmarks/study_scale.py --trials 2000

Makes a study of so many trials without training any: every run folder has a config, a summary and
a few lines of metrics. Then times both in a process each, with their peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vitc.config import to_saved
from vitc.files import write_json
from vitc.machine import environment
from vitc.study.measures.hparams import hparams_plan
from vitc.study.study_folder import StudyFolder

MODELS, OPTIMS = ["vit_c_tiny", "vit_p_tiny"], ["adamw", "sgd"]
LINES = 4  # evaluations of a trial, each with a line of training before it


def make(path: Path, trials: int) -> None:
    """A study whose trials have ended, with errors that depend on the draw."""
    draws = -(-trials // (len(MODELS) * len(OPTIMS)))
    plan = hparams_plan(["debug"], MODELS, OPTIMS, draws=draws, name="scale")
    folder = StudyFolder(path)
    folder.start(plan, environment(), "")
    config = to_saved(plan.groups[0].config)
    for trial in plan.trials():
        run = folder.trial(trial)
        run.mkdir(parents=True)
        write_json(run / "config.json", config)
        error = 20 + (7919 * trial.draw + 31 * len(trial.contender)) % 300 / 10
        summary = {"status": "done", "step": 100, "train_seconds": 5.0, "run": str(run)}
        top1 = dict.fromkeys(("top1", "top1_raw", "top1_best"), 100 - error)
        write_json(run / "summary.json", {**summary, **top1, "peak_memory_bytes": 2**28})
        lines = []
        for i in range(1, LINES + 1):
            at = {"step": 25 * i, "epoch": float(i)}
            lines.append({"kind": "train", "loss": 2 / i, **at})
            lines.append({"kind": "eval", "top1": 100 - error - LINES + i, **at})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text)


def timed(*words: str) -> tuple[float, float]:
    """(seconds, peak MiB of the children so far) of a `vitc` command."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "vitc", *words], check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return time.monotonic() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep the study here")
    args = parser.parse_args()
    where = args.keep or Path(tempfile.mkdtemp())
    try:
        make(where / "study", args.trials)
        for words in (["study", "status"], ["report"]):
            seconds, peak = timed(*words, str(where / "study"))
            print(f"vitc {' '.join(words)}: {seconds:.2f} s, at most {peak:.0f} MiB")
    finally:
        if args.keep is None:
            shutil.rmtree(where)


if __name__ == "__main__":
    main()
