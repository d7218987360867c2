"""A whole study, from a notebook or from the command line: tune, measure, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.errors import ConfigError
from vitc.resolve import check_arguments
from vitc.study.contenders import Request, groups_asked
from vitc.study.design import TUNING, Plan
from vitc.study.effect import check_drawn, check_effect, check_replaced
from vitc.study.launch import LocalEngine
from vitc.study.measures import measure_of
from vitc.study.measures.base import Measure, groups_of, request_of
from vitc.study.named import settings_of
from vitc.study.results import Section
from vitc.study.runner import conduct
from vitc.study.study_folder import StudyFolder
from vitc.study.tuning import (
    CHOSEN,
    Tuned,
    Tuning,
    before_measuring,
    best_values,
    check_draws,
    tuning_plan,
)
from vitc.views.model import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = tuple[StudyFolder, Plan]  # a plan and where its trials are
# of `runner.conduct`
EXECUTION = ("allow_mixed", "allow_changed_data", "retry_failed", "keep", "quiet")


@dataclass(frozen=True)
class StudyResult:
    """A study that was run: its folder, and what its report shows."""

    path: Path
    section: Section
    report: Path
    """The report's HTML page."""

    @property
    def verdict(self) -> str:
        return " ".join(self.section.finding.verdict)

    @property
    def frame(self) -> Any:
        """One row a trial: a pandas DataFrame, or where pandas is not installed a list of dicts."""
        rows = [dataclasses.asdict(r) for r in self.section.results]
        rows = [{**row, **row.pop("values")} for row in rows]
        try:
            import pandas as pd  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            return rows
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """What a notebook shows of it: the verdict, the main tables and where the rest is."""
        from vitc.views.html import fragment

        finding = self.section.finding
        tables = [t for t in finding.tables if t.brief]
        where = Text(f"Report: {self.report}. Folder: {self.path}", "note")
        return fragment([*(Text(v, "verdict") for v in finding.verdict), *tables, where])

    def figure(self, name: str = "") -> Figure:
        """The claim as a figure; with a name, the figures of the report whose names start so.

        Raises ConfigError: there is none.
        """
        from vitc.study.figures import claim_and_other_figures
        from vitc.views.figures import draw

        claim, others = claim_and_other_figures(self.section, 0)
        charts = [c for group in (*claim, *others) for c in group.charts]
        wanted = [c for c in charts if c.name.startswith(name)] if name else charts[:1]
        if claim and not name:
            wanted = list(claim[0].charts)
        if wanted:
            return draw(wanted, titled=True)
        names = ", ".join(chart.name for chart in charts)
        raise ConfigError(f"The study has no figure {name!r}.", f"Its figures: {names}.")


def _check_words(kind: Measure, words: Mapping[str, Any]) -> None:
    """Raises ConfigError: a number of runs that is none; the misspelt name of an argument, which
    would be taken for a setting."""
    for name in ("draws", "seeds"):
        count = words.get(name)
        if count is not None and (not isinstance(count, Integral) or count < 1):
            hint = f"Leave it out for the usual number of {name}."
            raise ConfigError(f"{name} is {count!r}; it must be an integer of at least 1.", hint)
    own = {*(f.name for f in dataclasses.fields(Request)), *(o.name for o in kind.options)}
    own = (own | {"draws", "seeds", "workers", "out", *EXECUTION}) - {"runs", "options", "settings"}
    check_arguments(words, own)


def run(
    measure: str = "hparams",
    recipes: str | Sequence[str] = (),
    *,
    contenders: Mapping[str, Any] | Sequence[str] = (),
    models: Sequence[str] = (),
    stems: Sequence[str] = (),
    optims: Sequence[str] = (),
    out: str | Path | None = None,
    **words: Any,
) -> StudyResult:
    """Run a study and its report; a study that is in `out` already is continued or extended.

    `contenders` are what is compared, by name: a model, stem, optimizer or schedule, each as its
    name (`vit_c_tiny`, `timm:resnet18`, `torchvision:resnet18`, `adamw`), as `FILE.py:Class`, as a
    class or a function that builds it (those of a notebook are written into the study's folder,
    where its workers import them), or as dotted settings. All else is the recipe's: without one
    `fashion_vit_p`, whose images are in the package, or `cifar10_vit_p` if `data` are given.

    Without them contenders are recipes x models (none: each recipe's own) x stems, under each
    optimizer.

    Further `words` are `draws` or `seeds`, `seed`, `reference`, `control` and `controls`, `looks`
    (planned readings of the results), `margin` (points, for equivalence), the options of the
    measure (as `lengths`, `tune` or `range`), `workers`, `allow_mixed`, `allow_changed_data`,
    `retry_failed`, `keep` (how many of the last trials keep their checkpoints beside each group's
    best, or "all"); and dotted settings for every trial, as `**{"train.epochs": 3}`.
    Raises ConfigError, DataError, RunError.
    """
    from vitc.study.reporting import report

    kind = measure_of(measure)
    execution = {name: words.pop(name) for name in EXECUTION if name in words}
    execution["engine"] = LocalEngine(words.pop("workers", None))
    folder = StudyFolder(Path(out) if out is not None else Path("studies") / measure)
    if contenders:
        words["contenders"] = settings_of(contenders, folder.path)
        recipes = recipes or ("cifar10_vit_p" if "data" in words else "fashion_vit_p")
    words |= {"recipes": recipes, "models": models, "stems": stems}
    if optims:
        words["optims"] = optims
    _check_words(kind, words)
    words["runs"] = words.pop("draws", None) or words.pop("seeds", None) or 0
    request = continued(request_of(kind, **words), folder, measure)
    for inside, plan in stages(measure, request, folder):
        conduct(inside, plan, **execution)
    allow = bool(execution.get("allow_changed_data", False))
    page, (section,) = report([folder.path], allow_changed_data=allow)
    return StudyResult(folder.path, section, page)


def continued(request: Request, folder: StudyFolder, measure: str) -> Request:
    """The request with what an earlier start of the study in the folder measured or chose.

    Raises ConfigError: fewer runs than there are.
    """
    kind, begun = measure_of(measure), folder.read()[0] if folder.exists() else None
    had = begun.draws if begun else 0
    runs = request.runs or had or kind.default_runs
    check_runs(folder, runs, had, f"--{kind.runs}")
    return dataclasses.replace(
        request,
        runs=runs,
        begun=begun.groups if begun else (),
        reference=request.reference or (begun.reference if begun else ""),
        looks=request.looks or (begun.looks if begun else 1),
        margin=begun.margin if begun and request.margin is None else request.margin,
        settings={**earlier_precision(folder), **request.settings},
        name=folder.path.name,
    )


def earlier_precision(folder: StudyFolder) -> dict[str, Any]:
    """The setting of the precision that was measured or chosen at an earlier start, if any."""
    for earlier in (StudyFolder(folder.path / TUNING), folder):
        if earlier.exists():
            plan, _ = earlier.read()
            return {"train.precision": plan.groups[0].config.train.precision}
    return {}


def check_runs(folder: StudyFolder, runs: int, had: int, option: str) -> None:
    """Raises ConfigError: fewer runs than the study has; `option` sets them."""
    if runs < had:
        raise ConfigError(
            f"{folder.path} has {option} {had}, more than {runs}; runs are never removed.",
            f"Use {option} {had} or more.",
        )


def stages(
    measure: str, request: Request, folder: StudyFolder, dry: bool = False
) -> Iterator[Stage]:
    """The studies to run, one after the other: the tuning, then what is measured with its result.

    Each must have run before the next is asked for; `dry`: none is run, and the last one has the
    recipe's settings instead of the tuned ones. Raises ConfigError, RunError.
    """
    kind = measure_of(measure)
    tuning = kind.tuning(request)
    if kind.runs == "seeds":
        option = "retune" if "retune" in {o.name for o in kind.options} else "tune"
        check_draws(folder, tuning.draws if tuning else 0, option)
    plan = kind.plan(request)  # mistakes, before a budget is spent
    if not request.begun:
        _check_settings(request, plan)
    if tuning is None:
        yield folder, folder.joined(plan)
        return
    request = with_one_precision(request, plan)
    groups, _ = groups_of(request)
    name = f"{folder.path.name} tuning"
    plan = tuning_plan(groups, tuning.points, draws=tuning.draws, seed=request.seed, name=name)
    if not request.begun:
        first = {g.optim: g.contender for g in reversed(groups)}  # whose values ranges are around
        drawn = {g.contender: plan.ranges[g.optim] for g in groups if g.contender != first[g.optim]}
        check_drawn(request.contenders, drawn, "Without tuning its own value is taken.")
    yield from after_tuning(tuning, folder, plan, dry, lambda tuned: kind.plan(request, tuned))


def _check_settings(request: Request, plan: Plan) -> None:
    """Raises ConfigError: settings of all or of a contender have no effect in this plan."""
    check_effect(request.settings, plan.groups)
    check_replaced(request.settings, request.contenders, "contender")
    for name, own in request.contenders.items():
        check_effect(own, [g for g in plan.groups if g.contender == name], name)


def after_tuning(
    tuning: Tuning, folder: StudyFolder, plan: Plan, dry: bool, measured: Callable[[Tuned], Plan]
) -> Iterator[Stage]:
    """The tuning inside the folder, then the plan that is `measured` with its best settings."""
    inside = StudyFolder(folder.path / TUNING)
    plan = inside.joined(before_measuring(plan))
    yield inside, plan
    tuned = Tuned(about=(f"{tuning.about}, {CHOSEN}",))
    if not dry:
        values, errors = best_values(inside, plan)
        tuned = Tuned(values, errors)
        tuned = dataclasses.replace(tuned, about=(f"{tuning.about}, {CHOSEN}: {tuned}",))
    yield folder, folder.joined(measured(tuned))


def with_one_precision(request: Request, plan: Plan) -> Request:
    """The request with the precision that its groups have in a plan of them.

    Precision auto is measured: once more for another plan of theirs, it could come out otherwise.
    """
    groups = groups_asked(request)
    if all(g.config.train.precision != "auto" for g in groups):
        return request
    precision = plan.groups[0].config.train.precision
    return dataclasses.replace(request, settings={**request.settings, "train.precision": precision})
