"""Does the divergence watch stay silent where nothing is wrong? 64 random draws on Fashion-MNIST.

    python scripts/healthy_draws.py [DRAWS] [OUT]     about 8 s of one core a draw

Both tiny models, AdamW and SGD; learning rate and weight decay are drawn log-uniformly over two
decades around those of the recipe. A draw that learnt must have no warning; of those that failed to
learn the findings are printed. Resumable; exits with 1 where a draw that learnt has a warning.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vitc.errors import DivergedError
from vitc.resolve import load_config
from vitc.runs.folder import Run
from vitc.training.loop import run

RECIPES = ("fashion_vit_c", "fashion_vit_p")
CENTRES = {"adamw": (2e-3, 0.1), "sgd": (0.1, 1e-4)}
DECADES = 1.0  # to either side of the recipe's learning rate and weight decay


def findings(out: Path) -> list[str]:
    lines = (out / "events.log").read_text(encoding="utf-8").splitlines()
    return [line.split("  ", 1)[1] for line in lines if "Warning: " in line and " since " in line]


def main(draws: int, out: Path) -> int:
    rng = np.random.default_rng(0)
    alarms = 0
    for i in range(draws):
        optim = ("adamw", "sgd")[i % 2]
        lr, decay = (c * 10 ** rng.uniform(-DECADES, DECADES) for c in CENTRES[optim])
        config = load_config(
            RECIPES[i // 2 % 2],
            optim=optim,
            **{
                "optim.lr": float(f"{lr:.3g}"),
                "optim.weight_decay": float(f"{decay:.3g}"),
                "data.max_train": 2000,
                "train.batch": 32,
                "train.epochs": 5,
                "train.eval_every_epochs": 5,
                "train.precision": "fp32",
                "train.threads": 1,
                "train.seed": i,
            },
        )
        where = out / f"draw_{i:02d}"
        if not Run(where).ended:
            try:
                run(config, where, quiet=True)
            except DivergedError as error:
                print(f"draw {i}: {error.message}")
        summary = Run(where).summary
        failed = summary["status"] != "done" or summary["failed_to_learn"]
        found = findings(where)
        alarms += bool(found) and not failed
        outcome = "failed to learn" if failed else f"top1 {summary['top1']:.1f} %"
        print(f"draw {i:2} {config.name} {optim} lr {lr:.2g}: {outcome}; {found or 'no finding'}")
    print(f"{alarms} false alarms in {draws} draws")
    return 1 if alarms else 0


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    sys.exit(main(count, Path(sys.argv[2] if len(sys.argv) > 2 else "runs/healthy_draws")))
