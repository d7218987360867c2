"""What a study's trials gave: one `Result` a trial, and what is concluded from all of them.

From a trial to a sentence of the report: run folder -> `Result` -> a comparison or estimate (of
the study's measure, in `vitc.study.measures`) -> `Finding`. A `Section` is a finding with where it
comes from; `vitc.study.analysis` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vitc.errors import VitcError
from vitc.files import read_json
from vitc.runs.folder import DATA, Run
from vitc.stats.proportions import learning_line
from vitc.study.chosen import read_chosen
from vitc.study.design import Group, Plan
from vitc.study.standing import standing
from vitc.study.study_folder import StudyFolder
from vitc.views.model import Chart, Table
from vitc.wording import counted

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity
    from vitc.study.contrasts import Contrast, Pairs
    from vitc.study.measures.draws import GroupDraws

Protocol = Literal["last", "paper"]  # which of a run's evaluations is its error
LEFT_OUT = "left out"  # status of a trial that a report does not use
PAPER_PRIMARY = "minimum over epochs of the top-1 error of the EMA weights on validation"


@dataclass(frozen=True)
class Finding:
    """What a measure concludes from the results of a study."""

    verdict: list[str]
    """One sentence a comparison, the controls' last; or why nothing is compared."""
    remarks: list[str]
    tables: list[Table]
    charts: list[Chart]
    values: dict[str, Any]
    """The same for machines, in results.json."""
    warnings: list[str] = field(default_factory=list)
    """What a reader must know before believing a number."""
    draws: tuple[GroupDraws, ...] = ()
    """Error distributions of random draws, by contender and optimizer; empty for other measures."""
    contrasts: tuple[Contrast, ...] = ()
    """Every contender against the reference."""
    compare: Callable[[Pairs], list[Contrast]] | None = None
    """The same for other pairs of contenders."""

    @property
    def sentences(self) -> list[str]:
        return [*self.verdict, *self.remarks]


@dataclass(frozen=True)
class Section:
    """One study, or several joined ones, in a report."""

    plan: Plan
    records: list[dict[str, Any]]
    """The plan.json of each study."""
    folders: list[str]
    results: list[Result]
    finding: Finding
    protocol: Protocol = "last"
    exploratory: str = ""
    """Why its p-values and intervals do not hold as planned: an extension that was not planned."""

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def unfinished(self) -> int:
        return sum(r.status in ("waiting", "running", "interrupted") for r in self.results)


@dataclass(frozen=True)
class Result:
    """One trial. `error` is top-1 error in percent; chance where it diverged; None where there
    is no result (failed, running, waiting)."""

    study: str
    id: str
    contender: str
    optim: str
    draw: int
    values: dict[str, float]
    status: str
    error: float | None
    error_raw: float | None
    error_best_epoch: float | None
    train_seconds: float | None
    steps: int
    peak_memory_bytes: int | None
    seed: int
    folder: str
    note: str = ""
    point: str = ""
    test: dict[str, Any] | None = None
    """What it scored on the test images; None for all but the chosen run of a group."""
    images: str = ""
    """The settings that decide which images it was run on."""
    fingerprint: str = ""
    """Of the images that it was run on; empty where it did not come so far."""
    failed_to_learn: bool = False
    """It diverged, or its answers are near chance (`proportions.learning_line`)."""


def results_of(folder: StudyFolder, plan: Plan, protocol: Protocol = "last") -> list[Result]:
    """One result a trial of the plan, whatever its state; its error by the protocol."""
    metric = "top1_best" if protocol == "paper" else "top1"
    runs = standing(folder, plan).runs
    line = learning_line(plan.classes, *_validation(folder, runs))
    # the chosen run is that with the best last epoch
    tests = read_chosen(folder.path) if protocol == "last" else {}
    found = []
    for trial in plan.trials():
        run = runs.get(trial.id)
        summary = run.summary if run else {}
        status = run.status if run else "waiting"
        done = status == "done"
        error: float | None = {"done": _error(summary, metric), "diverged": plan.chance_error}.get(
            status
        )
        test = tests.get(trial.group.key, {})
        found.append(
            Result(
                study=plan.name,
                id=trial.id,
                contender=trial.contender,
                optim=trial.optim,
                draw=trial.draw,
                values=trial.values,
                status=status,
                error=error,
                error_raw=_error(summary, "top1_raw") if done else None,
                error_best_epoch=_error(summary, "top1_best") if done else None,
                train_seconds=summary.get("train_seconds"),
                steps=int(summary.get("step") or 0),
                peak_memory_bytes=summary.get("peak_memory_bytes"),
                seed=trial.seeds["train.seed"],
                folder=str(folder.trial(trial)),
                note=str(summary.get("error") or ""),
                point=trial.point,
                test=test if test.get("trial") == trial.id else None,
                images=trial.images,
                fingerprint=str(summary.get("data_fingerprint") or ""),
                failed_to_learn=status == "diverged" or (error is not None and error > line),
            )
        )
    return found


def _validation(folder: StudyFolder, runs: Mapping[str, Run]) -> tuple[int, float]:
    """How many validation images the study has, and the share of their largest class; 0: unknown.

    Earlier versions did not record the share.
    """
    for name in runs:
        file = folder.trials / name / DATA
        if file.exists():
            record = read_json(file)
            return record.get("counts", {}).get("val", 0), record.get("largest_class", {}).get(
                "val", 0.0
            )
    return 0, 0.0


def _error(summary: Mapping[str, Any], metric: str) -> float | None:
    return None if summary.get(metric) is None else 100 - summary[metric]


def unsuccessful(plan: Plan, results: Sequence[Result]) -> list[str]:
    """How many runs failed to learn, how many of them near chance, and how many have no result."""
    gone = [r for r in results if r.failed_to_learn]
    near = sorted(r.error for r in gone if r.status == "done" and r.error is not None)
    crashed = sum(r.status == "failed" for r in results)
    found = []
    if gone:
        found.append(
            f"{len(gone)} of {len(results)} runs failed to learn: {len(gone) - len(near)} diverged"
            + (
                f", {len(near)} ended near chance ({near[0]:.1f} to {near[-1]:.1f} %)"
                if near
                else ""
            )
            + f"; chance is {plan.chance_error:g} %."
        )
    if crashed:
        found.append(f"{crashed} of {len(results)} runs failed; they are left out.")
    return found


def protocol_notes(plan: Plan, protocol: Protocol) -> list[str]:
    """What a reader must know of errors that are minima over epochs."""
    if protocol == "last":
        return []
    rare = max(g.config.train.eval_every_epochs for g in plan.groups)
    return [
        "Errors are minima over a run's epochs, as in the authors' sweeps (--protocol paper): the "
        "epoch is chosen on the images it is reported on, so they are too low."
        + (f" Runs were evaluated every {rare} epochs only." if rare > 1 else "")
    ]


def cost_of(g: Group, classes: int) -> tuple[Complexity | None, str]:
    """What one image costs in a contender's model; None and the reason where it cannot be counted.

    Whatever the code of a custom stem or model raises must not prevent the report of trials
    that ran. One that cannot be built without data is built with it: its size is a trial's.
    """
    import torch

    from vitc.models.complexity import complexity
    from vitc.models.zoo import build_model

    why = ""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                model = build_model(g.config.model, classes)
            return complexity(model), ""
        except Exception as error:
            text = error.message if isinstance(error, VitcError) else f"{error}"
            why = (text.strip().splitlines() or [""])[0] or type(error).__name__
    return None, why


def left_out(trials: int) -> str:
    """How many trials a report does not show."""
    verb = "is" if trials == 1 else "are"
    return f"{counted(trials, 'trial')} without a result {verb} not included."


def uncounted_note(contender: str, why: str) -> str:
    return f"{contender}: flops, parameters and activations could not be counted: {why}"
