"""Is a stem or model easier to train than those that ship? A screening card, in minutes.

A card (`vitc study card`) compares a contender with `vit_p_tiny` and `vit_c_tiny` in minutes. Their
trials are in the package, made by `scripts/reference_trials.py`, on sets of draws; which set a
contender gets follows from its content, so that nobody can fit a stem to one set of draws. A few of
the shipped trials are run again beside it: whether they hold here is part of the card. Where none
ship, or if one asks for it, all references are run here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vitc.config import SCHEMA
from vitc.errors import ConfigError
from vitc.files import read_json
from vitc.stats.compare import Comparison, compare
from vitc.study.across import sensitivity_table
from vitc.study.contrasts import Contrast, Key, Outcomes, contrasts
from vitc.study.design import Group, Plan, hashed_settings, sha_of
from vitc.study.measures.base import request_of
from vitc.study.measures.draws import GroupDraws, compare_draws, groups_of_draws
from vitc.study.measures.hparams import Hparams
from vitc.study.named import settings_of
from vitc.study.quick import trial_seconds
from vitc.study.results import Result, results_of
from vitc.study.study_folder import StudyFolder, looks_taken
from vitc.views.model import Table
from vitc.wording import counted

RECIPE = "fashion_vit_p"  # its ranges are around what suits vit_p_tiny
REFERENCE = "vit_p_tiny"
REFERENCES = (REFERENCE, "vit_c_tiny")
CONTROL = f"{REFERENCE} again"
OPTIMS = ("adamw", "sgd")
SEEDS = {"A": 101, "B": 102, "C": 103}  # of the sets of draws
DRAWS = 24  # an optimizer; fixed: whoever extends until a difference shows finds one too often
EPOCHS, SHORT = 3, 1
REPLAYED = 4  # draws of the references that are run again: 16 trials
MARGIN = 2.0  # points within which contenders are equivalent
BUDGET: dict[str, Any] = {  # of every trial, so that shipped ones can be run again to the bit
    "train.batch": 64,
    "train.precision": "fp32",
    "train.device": "cpu",
    "data.max_train": 3200,
}
SHORTER, REPLAY = "short", "replay"  # folders in a card's: the short runs, and some references
OWN, OWN_SHORTER = "references", "references_short"  # all references, where they are run here
SHIPPED = resources.files("vitc.study") / "reference" / "trials.json"


@cache
def shipped() -> dict[str, Any]:
    """The file of reference trials: by set the values of the draws, errors and failures."""
    with resources.as_file(SHIPPED) as file:
        return read_json(file) if file.exists() else {"sets": {}}


# -- plans -----------------------------------------------------------------------------------------


def reference_plan(draw_set: str, epochs: int = EPOCHS) -> Plan:
    """The shipped trials of a set; to the long ones belongs the A/A control."""
    control = epochs == EPOCHS
    return _plan(draw_set, epochs, DRAWS, models=REFERENCES, reference=REFERENCE, control=control)


def replay_plan(draw_set: str) -> Plan:
    """The shipped trials that are run again."""
    return _plan(draw_set, EPOCHS, REPLAYED, models=REFERENCES, reference=REFERENCE)


def contender_plan(
    name: str, own: Mapping[str, Any], draw_set: str = "", epochs: int = EPOCHS
) -> Plan:
    """The trials of a contender with its own settings; "": on the set that it is given.

    Raises ConfigError: it is neither a stem nor a model.
    """
    if set(own) - {"model", "model.stem"}:
        raise ConfigError(
            f"{name} sets {', '.join(sorted(own))}; a card is of a stem or a model.",
            "To compare other things: vitc study hparams RECIPE --contenders ...",
        )
    if name in (*REFERENCES, CONTROL):
        name = f"{name} here"
    if str(own.get("model", "")).startswith("torchvision:"):
        own = {**own, "model.in_chans": 3}  # it takes no other: grey images are repeated
    plan = _plan(draw_set or next(iter(SEEDS)), epochs, DRAWS, contenders={name: own})
    if draw_set:
        return plan
    return _plan(set_of(plan.groups[0]), epochs, DRAWS, contenders={name: own})


def set_of(group: Group) -> str:
    """The set of draws that a contender is given, by its content."""
    content = sha_of(hashed_settings(group.settings, SCHEMA)["model"])
    names: list[str] = sorted(shipped()["sets"]) or list(SEEDS)
    return names[int(content, 16) % len(names)]


def _plan(draw_set: str, epochs: int, draws: int, **words: Any) -> Plan:
    lengths = {"train.epochs": epochs, "train.eval_every_epochs": epochs}
    request = request_of(
        Hparams(),
        recipes=(RECIPE,),
        optims=OPTIMS,
        runs=draws,
        seed=SEEDS[draw_set],
        name=f"screening card, {counted(epochs, 'epoch')}",
        **words,
        **BUDGET,
        **lengths,
    )
    return Hparams().plan(request)


# -- a card ----------------------------------------------------------------------------------------

Stage = tuple[StudyFolder, Plan]


@dataclass(frozen=True)
class Replay:
    """The shipped trials that were run again here, in the order of their draws."""

    here: Sequence[Result]
    shipped: Sequence[Result]

    @property
    def differences(self) -> list[float]:
        """Errors here minus the shipped ones, in points, where both learnt."""
        return [
            round(a.error - b.error, 9)
            for a, b in zip(self.here, self.shipped, strict=True)
            if a.error is not None
            and b.error is not None
            and not (a.failed_to_learn or b.failed_to_learn)
        ]

    @property
    def identical(self) -> int:
        pairs = zip(self.here, self.shipped, strict=True)
        return sum(_same(a.error, b.error) for a, b in pairs)

    @property
    def comparison(self) -> Comparison:
        """Here against there: where it is not open, the shipped trials do not hold here."""
        a, b = ([_learnt(r) for r in results] for results in (self.here, self.shipped))
        return compare(a, b)


@dataclass(frozen=True)
class Card:
    """What the trials of a card show; `contrasts` against both references and of the control."""

    name: str
    draw_set: str
    path: Path
    plan: Plan
    """Of the contender, the references and their control."""
    record: Mapping[str, Any]
    """plan.json of the contender's trials."""
    groups: Sequence[GroupDraws]
    contrasts: Sequence[Contrast]
    losses: Sequence[Contrast]
    """Of what training for `SHORT` epochs instead of `EPOCHS` costs, draw by draw."""
    loss_of: Mapping[Key, Outcomes]
    sensitivity: Sequence[Table]
    """Of what one setting for both lengths costs."""
    replay: Replay
    own_references: bool
    """All references were run here; else they are those of `shipped`."""
    shipped: Mapping[str, Any]
    unfinished: int


def card_stages(
    contenders: Mapping[str, Any] | Sequence[str], folder: Path, own_references: bool = False
) -> list[Stage]:
    """What a card runs: the contender, the same for fewer epochs, and references: some of the
    shipped ones again, or all of them.

    `contenders` holds the one contender, as `vitc.study.run` takes them. Raises ConfigError.
    """
    named = settings_of(contenders, folder)
    if len(named) != 1:
        raise ConfigError(f"A card is of one stem or model, not of {len(named)}.")
    ((name, own),) = named.items()
    main = StudyFolder(folder)
    if main.exists():  # on the set that it was begun with, whatever ships now
        plan = contender_plan(name, own, _set_in(main.read()[0]))
    else:
        plan = contender_plan(name, own)
    draw_set = _set_in(plan)
    stages = [
        (main, main.joined(plan)),
        (StudyFolder(folder / SHORTER), contender_plan(name, own, draw_set, SHORT)),
    ]
    if own_references or StudyFolder(folder / OWN).exists() or draw_set not in shipped()["sets"]:
        return [
            *stages,
            (StudyFolder(folder / OWN), reference_plan(draw_set)),
            (StudyFolder(folder / OWN_SHORTER), reference_plan(draw_set, SHORT)),
        ]
    return [*stages, (StudyFolder(folder / REPLAY), replay_plan(draw_set))]


def expected_seconds(stages: Sequence[Stage]) -> float:
    """About how many core seconds all trials of a card take, by a few steps of the contender and of
    a reference."""
    seconds = 0.0
    for plans in ([plan for _, plan in stages[:2]], [plan for _, plan in stages[2:]]):
        first = plans[0].groups[0].config
        an_epoch = trial_seconds(first) / first.train.epochs
        seconds += sum(
            an_epoch * g.config.train.epochs * plan.draws for plan in plans for g in plan.groups
        )
    return seconds


def read_card(folder: Path) -> Card:
    """A card from its trials, finished or not. Raises ConfigError: it is none, or was extended."""
    plan, record = StudyFolder(folder).read()
    draw_set = _set_in(plan)
    if plan.draws != DRAWS or looks_taken(record)[0] > 1:
        raise ConfigError(
            f"{folder} has {plan.draws} draws; a card has {DRAWS} and is never extended.",
            "Its trials are those of a study: vitc report shows them.",
        )
    (name,) = plan.contenders
    plan = StudyFolder(folder).with_sources(plan)
    references = reference_plan(draw_set)
    both = dataclasses.replace(
        references, groups=(*plan.groups, *references.groups), margin=MARGIN, name="screening card"
    )
    long, short, again = _results(folder), _results(folder / SHORTER), _results(folder / REPLAY)
    own = [*long, *short, *again]
    if StudyFolder(folder / OWN).exists():
        rivals = {EPOCHS: _results(folder / OWN), SHORT: _results(folder / OWN_SHORTER)}
        own += [r for results in rivals.values() for r in results]
    else:
        rivals = {n: shipped_results(draw_set, n, folder / REPLAY) for n in (EPOCHS, SHORT)}
    by_length = {EPOCHS: [*long, *rivals[EPOCHS]], SHORT: [*short, *rivals[SHORT]]}
    groups = groups_of_draws(both, by_length[EPOCHS])
    pairs = [(name, reference) for reference in REFERENCES] + [(CONTROL, REFERENCE)]
    losses = _losses(by_length)
    return Card(
        name=name,
        draw_set=draw_set,
        path=folder,
        plan=both,
        record=record,
        groups=groups,
        contrasts=compare_draws(both, groups, pairs),
        losses=contrasts(both, "loss", f"loss by {SHORT} epoch instead of {EPOCHS}", losses, pairs),
        loss_of=losses,
        sensitivity=sensitivity_table(
            {counted(n, "epoch"): (found, both.chance_error) for n, found in by_length.items()}
        ),
        replay=_replay(again, rivals[EPOCHS]),
        own_references=StudyFolder(folder / OWN).exists(),
        shipped=shipped(),
        unfinished=sum(r.status in ("waiting", "running", "interrupted") for r in own),
    )


def _losses(by_length: Mapping[int, Sequence[Result]]) -> dict[Key, Outcomes]:
    found: dict[Key, Outcomes] = {}
    for key in dict.fromkeys((r.contender, r.optim, r.point) for r in by_length[EPOCHS]):
        short, long = (
            Outcomes.of([r for r in by_length[n] if (r.contender, r.optim, r.point) == key])
            for n in (SHORT, EPOCHS)
        )
        if short.draws:  # the control has long runs only
            found[key] = short.minus(long)
    return found


def _set_in(plan: Plan) -> str:
    """The set of draws of a card's plan. Raises ConfigError: it is that of another study."""
    for name, seed in SEEDS.items():
        if plan.seed == seed and plan.name.startswith("screening card"):
            return name
    raise ConfigError(
        f"The study {plan.name!r} is no screening card.", "Give another --out, or use vitc report."
    )


def _results(folder: Path) -> list[Result]:
    study = StudyFolder(folder)
    if not study.exists():
        return []
    return results_of(study, study.with_sources(study.read()[0]))


def shipped_results(draw_set: str, epochs: int, replays: Path) -> list[Result]:
    """The reference trials of a set, as if they had been run in the folder `replays`.

    Raises ConfigError: what ships are other trials than this version would run.
    """
    plan, kept = reference_plan(draw_set, epochs), shipped()["sets"][draw_set]
    found = []
    for trial in plan.trials():
        values = dict(
            zip(kept["settings"][trial.optim], kept["values"][trial.optim][trial.draw], strict=True)
        )
        if values != trial.values:
            raise ConfigError(
                f"The shipped trial {trial.label} has other settings than this version draws.",
                "Make them again: python scripts/reference_trials.py",
            )
        runs = kept["epochs"][str(epochs)][trial.contender][trial.optim]
        found.append(
            Result(
                study=plan.name,
                id=trial.id,
                contender=trial.contender,
                optim=trial.optim,
                draw=trial.draw,
                values=trial.values,
                status="done",
                error=runs["errors"][trial.draw],
                error_raw=None,
                error_best_epoch=None,
                train_seconds=None,
                steps=0,
                peak_memory_bytes=None,
                seed=trial.seeds["train.seed"],
                folder=str(StudyFolder(replays).trial(trial)),
                failed_to_learn=trial.draw in runs["failed"],
            )
        )
    return found


def _replay(here: Sequence[Result], there: Sequence[Result]) -> Replay:
    known = {(r.contender, r.optim, r.draw): r for r in there}
    ended = [r for r in here if r.error is not None]
    return Replay(ended, [known[r.contender, r.optim, r.draw] for r in ended])


def _learnt(r: Result) -> float:
    return float("nan") if r.failed_to_learn or r.error is None else r.error


def _same(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) < 1e-6
