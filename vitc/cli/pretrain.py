"""`vitc pretrain formula`: weights to start from, made without a photo."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import Parser, Verb, emit, emit_json, note, seconds, writes_files
from vitc.cli.plan import cost_lines
from vitc.deploy.front_door import plan_training, train_plan
from vitc.errors import unknown
from vitc.recipes import PRETRAINING


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("what", metavar="RECIPE", help=f"what to learn from: {', '.join(PRETRAINING)}")
    add("--out", metavar="DIR", type=Path, help="the run folder (default: runs/<recipe>)")
    add("--budget", metavar="TIME", type=seconds, help="total time, such as 40m or 3h")
    add("--overwrite", action="store_true", help="discard a run in that folder and start over")
    add("--dry-run", action="store_true", help="show what it would take, and stop")
    add("--json", action="store_true", help="print summary.json on the last line of stdout")


def run(args: Namespace) -> int:
    if args.what not in PRETRAINING:
        raise unknown("pretraining recipe", args.what, PRETRAINING)
    settings = dict(args.settings)
    if args.budget is not None:
        settings["train.budget_seconds"] = args.budget
    plan = plan_training(args.what, args.out, None, settings, args.overwrite)
    args.run_folder = plan.out
    if args.dry_run or not (plan.out / "config.json").exists() or args.overwrite:
        from vitc.deploy.plan import plan as cost_of

        for line in [*plan.notes, *cost_lines(cost_of(args.what, **settings))]:
            (emit if args.dry_run and not args.json else note)(line)
    if args.dry_run:
        if args.json:
            emit_json({"out": str(plan.out), "notes": list(plan.notes)})
        return 0
    result = train_plan(plan, overwrite=args.overwrite)
    if args.json:
        emit_json(result.summary)
        return 0
    top1 = "" if result.top1 is None else f"top1 {result.top1:.2f} % on its own validation.  "
    emit(f"{top1}Run: {result.path}")
    emit(f"Next: vitc train PHOTOS --init {shlex.quote(str(result.path))}")
    return 0


VERB = Verb(
    summary="Pretrain a model on images made from formulas: weights without a photo's licence.",
    usage="RECIPE [options] [--SETTING VALUE ...]",
    example="vitc pretrain formula --model vit_r_tiny64 --budget 40m\n"
    "vitc train ~/photos --init runs/formula",
    options=options,
    run=run,
    runs=("out",),
    takes_settings=True,
    in_files=writes_files,
    epilog="The images are fractals and contours, the same ones from the same seed on every\n"
    "machine: --data formula:classes=1000,images=100,side=64,seed=0 (docs/results/formula.md).\n"
    "The same command again resumes a run that was interrupted.",
)
