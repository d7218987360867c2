"""Set a study up, run what is missing of it, and say how far it is."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitc.config import RunConfig, all_leaf_types, leaves, load_config, resolve_config
from vitc.errors import CheckpointError, ConfigError, InterruptedRun
from vitc.files import FolderLock
from vitc.machine import environment
from vitc.models.config import (
    STEM_KINDS,
    CNNConfig,
    CustomStemConfig,
    ModelConfig,
    StemConfig,
    ViTConfig,
)
from vitc.models.zoo import MODELS, build_model
from vitc.plugins.consent import customs, with_sources
from vitc.plugins.names import STEM, Custom
from vitc.progress import Progress
from vitc.recipes.ranges import study_ranges
from vitc.runs.folder import CONFIG, ENDED, SUMMARY, Run
from vitc.study.controls import RangeRule, control_groups, shifted, with_range_rule
from vitc.study.design import TUNING, Group, Plan, Range, StudyFolder, Trial, mixed
from vitc.study.launch import Engine, LocalEngine, device_of, run_all
from vitc.study.work import (
    allow_again,
    check_machine,
    locks_work,
    other_versions,
    read_tries,
    status_of,
)
from vitc.wording import duration

# -- plans -----------------------------------------------------------------------------------------


def hparams_plan(
    recipes: Sequence[str],
    models: Sequence[str],
    optims: Sequence[str],
    *,
    stems: Sequence[str] = (),
    draws: int,
    seed: int = 0,
    ranges: Mapping[str, Mapping[str, Range]] | None = None,
    control: bool = False,
    controls: Sequence[str] = (),
    range_rule: RangeRule = "shared",
    octave: Literal["up", "down"] | None = None,
    old: Sequence[Group] = (),
    reference: str = "",
    name: str = "hparams",
    **overrides: Any,
) -> Plan:
    """Contenders = recipes x models (no models: each recipe's own) x stems, under every optimizer.

    `stems` are kinds (`models.config.STEM_KINDS`) or classes from outside (my.py:MyStem); where the
    zoo has the model with a stem of that kind, that one is taken: `conv` under vit_p_tiny is the
    stem of vit_c_tiny. Without `stems` every model keeps its own.

    The ranges are those of the first recipe (`recipes.ranges`) for all contenders, whatever their
    models: what is shared may suit one better than another, which `range_lines` says. `ranges`
    (optimizer -> setting -> Range) replaces some of them, or draws further settings. `control`
    adds the reference against itself with other seeds (A/A); `controls`, `range_rule` and `octave`
    are those of `controls.py`, and `old` the groups of a study that goes on. `overrides` are
    settings for every trial. Raises ConfigError.
    """
    plain = contenders_of(recipes, models, optims, stems, **overrides)
    reference = reference_of(plain, reference)
    plain += control_groups(plain, controls, reference, old)
    groups = [g.with_config(for_study(g.config)) for g in plain]
    groups = one_precision([*groups, *(again(groups, reference) if control else [])])
    # of the recipe itself: a contender's setting, such as one of its stem, need not be one of its
    kept = {n: v for n, v in overrides.items() if n == "model" or n.startswith("optim.")}
    asked = {optim: (ranges or {}).get(optim, {}) for optim in optims}
    all_ranges = {}
    for optim in optims:
        own = study_ranges(resolve_config(recipes[0], optim=optim, **kept), optim)
        drawn = {name: Range(low=low, high=high) for name, (low, high) in own.items()}
        all_ranges[optim] = {**drawn, **asked[optim]}
    groups, all_ranges = with_range_rule(groups, all_ranges, range_rule, asked)
    if octave is not None:
        all_ranges = {o: shifted(rs, octave) for o, rs in all_ranges.items()}
        groups = [
            g if g.ranges is None else dataclasses.replace(g, ranges=shifted(g.ranges, octave))
            for g in groups
        ]
    return Plan(
        name=name,
        groups=tuple(groups),
        ranges=all_ranges,
        draws=draws,
        seed=seed,
        reference=reference,
        classes=count_classes(groups[0].config),
    ).checked()


def contenders_of(
    recipes: Sequence[str],
    models: Sequence[str],
    optims: Sequence[str],
    stems: Sequence[str] = (),
    **overrides: Any,
) -> list[Group]:
    """One group a contender and optimizer, as `hparams_plan` says, its config as the recipe's.

    Raises ConfigError.
    """
    if not recipes or not optims:
        raise ConfigError("A study needs at least one recipe and one optimizer.")
    groups = []
    for optim in optims:
        for recipe in recipes:
            for model, stem in itertools.product(models or [""], stems or [""]):
                config = _config(recipe, model, optim, overrides)
                if stem and not isinstance(config.model, ViTConfig):
                    raise ConfigError(f"--stems has no effect with {config.model.name}: no ViT.")
                if stem:
                    config = load_config(config, **{"model.stem": _stem_for(config, stem)})
                model_found = with_sources(config.model, recipe)
                config = dataclasses.replace(config, model=model_found)
                kind = stem or overrides.get("model.stem", "")
                label = _label(config, kind if isinstance(kind, str) else "", stems)
                label = label if len(recipes) == 1 else f"{recipe} {label}"
                groups.append(Group(contender=label, optim=optim, config=config))
    for model_config in {g.config.model for g in groups}:  # before a budget is spent on them
        if any(customs(model_config)):
            build_model(model_config, 2)
    return groups


def _config(recipe: str, model: str, optim: str, settings: Mapping[str, Any]) -> RunConfig:
    """A contender's config. Raises ConfigError; of a setting that only others have it says so."""
    named = {"model": model} if model else {}
    try:
        return load_config(recipe, optim=optim, **named, **settings)
    except ConfigError as error:
        kept = {n: settings[n] for n in ("model", "data") if n in settings}
        bare = resolve_config(recipe, optim=optim, **named, **kept)
        lacking = _lacking(bare, settings)
        if not lacking:
            raise
        raise ConfigError(
            f"{lacking[0]} has no effect with contender {bare.model.name} under {optim}, and a "
            "setting of a study holds for every contender.",
            "Leave it out, or name only contenders that have it: vitc study hparams takes "
            "--models, --stems and --optims.",
        ) from error


def _lacking(config: RunConfig, settings: Mapping[str, Any]) -> list[str]:
    """Those of the settings that other kinds of model, stem or optimizer have."""
    own = set(leaves(config))
    if isinstance(config.model, ViTConfig):
        own.add("model.stem")
        kind = settings.get("model.stem")
        if isinstance(kind, str):
            own = {n for n in own if not n.startswith("model.stem.")}
            own |= leaves(STEM_KINDS.get(kind, CustomStemConfig)(), "model.stem.").keys()
    everywhere = {*all_leaf_types(), "model.stem"}
    return [n for n in settings if n in everywhere and n not in own]


def reference_of(groups: Sequence[Group], reference: str) -> str:
    """The contender to compare with: this one, or the last. Raises ConfigError: not there."""
    contenders = list(dict.fromkeys(g.contender for g in groups))
    reference = reference or contenders[-1]
    if reference not in contenders:
        raise ConfigError(
            f"The reference {reference!r} is not a contender.", f"Known: {', '.join(contenders)}."
        )
    return reference


def again(groups: Sequence[Group], reference: str) -> list[Group]:
    """The A/A control: the reference against itself with other seeds."""
    return [
        dataclasses.replace(g, contender=f"{reference} again", seed_shift=500_000)
        for g in groups
        if g.contender == reference
    ]


def _stem_for(config: RunConfig, stem: str) -> StemConfig | str:
    """A stem of this kind as the zoo gives it to the model or its twin; else the word itself."""
    name = config.model.name
    twin = {"vit_p_": "vit_c_", "vit_c_": "vit_p_"}.get(name[:6], "") + name[6:]
    for model in (config.model, MODELS.get(twin)):
        if isinstance(model, ViTConfig) and type(model.stem) is STEM_KINDS.get(stem):
            return model.stem
    return stem


def _label(config: RunConfig, stem: str, stems: Sequence[str]) -> str:
    """A contender's name: its model's, and its stem's where that was chosen, be it for all."""
    chosen = getattr(config.model, "stem", None)
    if isinstance(chosen, CustomStemConfig):
        own = chosen.custom
        same = [s for s in stems if Custom(STEM, s).what == own.what]
        stem = own.what if len(same) < 2 else f"{Path(own.place).stem}:{own.what}"
    return f"{config.model.name}+{stem}" if stem else config.model.name


def range_lines(plan: Plan, recipe: str, rule: RangeRule = "shared") -> list[str]:
    """What the contenders draw from, and whom it was not made for: said before a study runs.

    `recipe` is the one that the shared ranges come from.
    """
    own = [g.ranges for g in plan.groups if g.ranges is not None]
    if own:
        same = all(r == plan.ranges[g.optim] for r, g in zip(own, plan.groups, strict=True))
        return (
            [
                f"--ranges {rule} changes nothing here: a contender's own ranges are its recipe's, "
                "and all are the same."
            ]
            if same
            else ["Each contender draws from its own recipe's ranges, at the same quantiles."]
        )
    drawn = "; ".join(
        f"{optim}: "
        + ", ".join(
            f"{n.removeprefix('optim.')} {r.low:g} to {r.high:g}" for n, r in ranges.items()
        )
        for optim, ranges in plan.ranges.items()
    )
    lines = [f"All contenders draw from the same ranges, {drawn}."]
    if rule != "shared":
        return lines
    first = resolve_config(recipe).model
    strangers = dict.fromkeys(
        g.contender for g in plan.groups if _family(g.config.model) != _family(first)
    )
    if strangers:
        lines.append(
            f"They come from {recipe}, the recipe of a {_family(first)}, and may not suit "
            f"{', '.join(strangers)}. With a recipe of its own and --ranges separate a contender "
            "draws from ranges of its own; --range SETTING LOW HIGH sets those of all."
        )
    return lines


def _family(model: ModelConfig) -> str:
    return {ViTConfig: "ViT", CNNConfig: "CNN"}.get(type(model), "model of timm")


def one_precision(groups: list[Group]) -> list[Group]:
    """Precision auto decided once, by the first group's model, for all of them."""
    from vitc.training.device import pick_device
    from vitc.training.probe import faster_precision

    undecided = [g for g in groups if g.config.train.precision == "auto"]
    if not undecided:
        return groups
    first = undecided[0].config
    try:
        device = pick_device(first.train.device)
    except ConfigError as error:
        raise ConfigError(
            f"{error.message} So which precision is faster there cannot be measured.",
            "Say --train.precision bf16 (or fp32) for trials that run on other machines.",
        ) from error
    precision, _ = faster_precision(first, device)
    return [
        g.with_config(load_config(g.config, **{"train.precision": precision}))
        if g in undecided
        else g
        for g in groups
    ]


def count_classes(config: RunConfig) -> int:
    """Classes of the data a run would see; opens it."""
    from vitc.data.dataset import open_data

    return len(open_data(config.data, config.model.in_chans).classes)


CURVE_POINTS = 4  # evaluations of a trial, at most: one costs about a tenth of an epoch


def for_study(config: RunConfig) -> RunConfig:
    """The config as a trial: on CPU one thread, as many trials share the cores; and evaluated
    every second epoch at most, four times in all, so that the time goes into training."""
    from vitc.training.device import pick_device

    named = config.train.device  # another engine may have it, though it is not here
    device = pick_device().type if named == "auto" else named
    threads = 1 if device == "cpu" else config.train.threads
    epochs = config.train.epochs
    every = max(config.train.eval_every_epochs, min(2, epochs), math.ceil(epochs / CURVE_POINTS))
    return load_config(
        config,
        **{"train.device": device, "train.threads": threads, "train.eval_every_epochs": every},
    )


# -- running ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How far a study is: trials by status, and what the finished ones cost."""

    total: int
    counts: Counter[str]
    seconds: float
    runs: dict[str, Run]

    @property
    def ended(self) -> int:
        return sum(self.counts[s] for s in ("done", "diverged", "failed"))


def trials_by_id(plan: Plan) -> dict[str, Trial]:
    """Every run of the plan once: two contenders of the same config share their runs."""
    return {t.id: t for t in plan.trials()}


def standing(folder: StudyFolder, plan: Plan) -> Standing:
    """Read every trial's folder; `waiting` are those that have none.

    Raises CheckpointError where one is damaged.
    """
    counts: Counter[str] = Counter()
    runs: dict[str, Run] = {}
    seconds = 0.0
    trials = trials_by_id(plan).values()
    for trial in trials:
        path = folder.trial(trial)
        if not (path / CONFIG).exists():
            counts["waiting"] += 1
            continue
        run = runs[trial.id] = _run_in(path)
        counts[run.status] += 1
        seconds += float(run.summary.get("train_seconds") or 0.0)
    return Standing(len(trials), counts, seconds, runs)


def _run_in(path: Path) -> Run:
    numbers = ("top1", "top1_raw", "top1_best", "train_seconds", "step", "peak_memory_bytes")
    try:
        run = Run(path)
        for name in numbers:
            value = run.summary.get(name)
            if not isinstance(value, int | float | None):
                raise CheckpointError(f"{path / SUMMARY} is damaged: {name} is {value!r}.")
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(
            error.message, f"Remove {path}: the study's command then runs that trial again."
        ) from error
    return run


def conduct(
    folder: StudyFolder,
    plan: Plan,
    *,
    workers: int | None = None,
    engine: Engine | None = None,
    allow_mixed: bool = False,
    retry_failed: bool = False,
    quiet: bool = False,
    command: str = "",
) -> Standing:
    """Write or join the plan, then run every trial that has not ended.

    `engine` places the trials (`placement.Placement.make`); without one, `workers` on this machine
    do. It is no part of the plan: a study may go on with another, which its history then says.

    Raises ConfigError: another study is there, or contenders differ in what must agree and
    `allow_mixed` is not set (those of an exhibit may, its machines and versions not). Raises
    InterruptedRun on SIGTERM or Ctrl-C, once the running trials have saved their state: the same
    command goes on.
    """
    differing = mixed(plan)
    if differing and not (allow_mixed or plan.exhibit):  # an exhibit's differ as in the paper
        raise ConfigError(
            "The contenders would not be compared fairly:\n  " + "\n  ".join(differing),
            "Make them agree, or say --allow-mixed; the report will name it.",
        )
    here = environment()
    engine = engine or LocalEngine(workers=workers)
    here["engine"] = engine.name
    folder.path.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder.path):
        plan = folder.joined(plan)
        record = folder.start(plan, here, command)
        _same_machine(folder, record, here, allow_mixed, command)
        if differing:
            _note_once(folder, record, f"mixed on purpose: {'; '.join(differing)}", command)
        before = standing(folder, plan)
        again = [i for i, r in before.runs.items() if r.status == "failed"] if retry_failed else []
        if again:
            folder.note(f"ran again after failure: {', '.join(again)}", command)
            for name in again:
                allow_again(folder.trials / name)
        trials = [
            t
            for t in trials_by_id(plan).values()
            if t.id in again or t.id not in before.runs or not before.runs[t.id].ended
        ]
        if trials:
            with contextlib.closing(engine):
                engine.prepare(folder, device_of(plan), allow_mixed)
                _run(folder, plan, trials, engine, quiet)
            other = [c for t in trials for c in _other_machines(folder, record, t)]
            if other:
                what = f"other versions: {'; '.join(dict.fromkeys(other))}"
                _note_once(folder, record, what, command)
    return standing(folder, plan)


def work_on(
    folder: StudyFolder,
    engine: Engine,
    *,
    part: tuple[int, int] = (1, 1),
    allow_mixed: bool = False,
    quiet: bool = False,
) -> Standing:
    """Run the unfinished trials of a study that exists, or of the i-th of n equal parts of it.

    Any number of machines may do so at a time: each takes the trials that no other has claimed,
    and returns when there are none. Raises ConfigError: this machine does not see the study, has
    other versions, or its file system has no locks; InterruptedRun, as `conduct`.
    """
    check_machine(folder, allow_mixed)
    if part == (1, 1) and engine.name == "local" and not locks_work(folder.path):
        raise ConfigError(
            f"The file system of {folder.path} has no locks, so that two machines could run the "
            "same trial.",
            "Give each machine its part: --slice 1/2 and --slice 2/2, say.",
        )
    plan, _ = folder.read()
    now = standing(folder, plan)
    trials = list(trials_by_id(plan).values())[part[0] - 1 :: part[1]]
    trials = [t for t in trials if t.id not in now.runs or not now.runs[t.id].ended]
    if trials:
        with contextlib.closing(engine):
            engine.prepare(folder, device_of(plan), allow_mixed)
            _run(folder, plan, trials, engine, quiet, wait=False)
    return standing(folder, plan)


def _run(
    folder: StudyFolder,
    plan: Plan,
    trials: list[Trial],
    engine: Engine,
    quiet: bool,
    wait: bool = True,
) -> None:
    total = len(trials_by_id(plan))
    left = list(trials)
    screen = Progress(plan.name, total, "trials", quiet=quiet, plain_seconds=math.inf)
    screen.start_at(total - len(left))
    resumed = f", {total - len(left)} already there" if total > len(left) else ""
    screen.line(f"study {plan.name}: {total} trials{resumed}; {_places(engine)}")
    looked = 0.0

    def going() -> bool:
        nonlocal looked
        if time.monotonic() > looked + 1:
            looked = time.monotonic()
            look()
        return not caught

    def look() -> None:
        for trial in [t for t in left if status_of(folder.trial(t)) in ENDED]:
            left.remove(trial)
            screen.update(screen.done + 1, note="")
            screen.line(f"[{screen.done}/{total}] {trial.label}: {_end(folder, trial)}")
        screen.update(screen.done, note="")

    with screen, _stop_signal() as caught:
        run_all(folder, [t.id for t in trials], engine, going, wait)
        look()
    if caught:
        raise InterruptedRun(
            f"Stopped by {signal.Signals(caught[0]).name}; running trials saved their state.",
            f"The same command resumes; to see progress: vitc study status {folder.path}",
            caught[0],
        )


def _other_machines(folder: StudyFolder, record: Mapping[str, Any], trial: Trial) -> list[str]:
    """The versions of the machines that ran a trial, where they are not those of the start."""
    then = record["environment"]["versions"]
    return [
        f"{change} on {entry['host']}"
        for entry in read_tries(folder.trial(trial))
        for change in other_versions(then, entry["versions"])
    ]


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that SIGTERM or Ctrl-C is put into; the second one is not held."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def handler(number: int, frame: object) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for which, old in before.items():
            signal.signal(which, old)

    with contextlib.suppress(ValueError):  # not the main thread: nobody to ask
        for which in (signal.SIGTERM, signal.SIGINT):
            before[which] = signal.signal(which, handler)
    try:
        yield caught
    finally:
        if not caught:
            restore()


def _same_machine(
    folder: StudyFolder, record: Mapping[str, Any], here: Mapping[str, Any], allow: bool, cmd: str
) -> None:
    """Versions and hardware must be those of the start, or it is said and recorded; so is another
    engine, which needs no leave."""
    then = record["environment"]
    changed = other_versions(then["versions"], here["versions"])
    engines = (then.get("engine", LocalEngine.name), here["engine"])
    if engines[0] != engines[1]:
        _note_once(folder, record, f"continued with engine {engines[1]}", cmd)
    # where another engine runs the trials is known to the trials alone
    for k in ("cpu", "gpus") if set(engines) == {LocalEngine.name} else ():
        if then["hardware"].get(k) != here["hardware"].get(k):
            changed.append(f"{k} {then['hardware'].get(k)} -> {here['hardware'].get(k)}")
    if not changed:
        return
    if not allow:
        raise ConfigError(
            "The study was begun elsewhere: " + "; ".join(changed) + ".",
            "Go on there, or say --allow-mixed; the report will name it.",
        )
    _note_once(folder, record, f"continued with other conditions: {'; '.join(changed)}", cmd)


def _note_once(folder: StudyFolder, record: Mapping[str, Any], what: str, command: str) -> None:
    if all(entry["what"] != what for entry in record["history"]):
        folder.note(what, command)


# -- words -----------------------------------------------------------------------------------------


def _end(folder: StudyFolder, trial: Trial) -> str:
    """How a trial ended: its error on validation, or why it has none, and its seconds."""
    run = Run(folder.trial(trial))
    seconds = duration(float(run.summary.get("train_seconds") or 0.0))
    if run.status == "done" and run.top1 is not None:
        return f"error {100 - run.top1:.2f} % ({seconds})"
    reason = str(run.summary.get("error") or "").strip().splitlines()
    return f"{run.status}{': ' + reason[-1] if reason else ''} ({seconds})"


def _places(engine: Engine) -> str:
    if engine.name == LocalEngine.name:
        return f"{engine.size} worker(s)"
    return f"engine {engine.name}, at most {engine.size} at a time"


def status_lines(folder: StudyFolder) -> list[str]:
    """What `vitc study status DIR` prints, from any terminal, while the study runs or after.

    Raises ConfigError: no study; CheckpointError: a damaged trial.
    """
    tuning = StudyFolder(folder.path / TUNING)
    if not tuning.exists():
        return _status_lines(folder)
    if not folder.exists():
        return ["Nothing is measured yet: the tuning comes first.", *_status_lines(tuning)]
    return [*_status_lines(tuning), *_status_lines(folder)]


def _status_lines(folder: StudyFolder) -> list[str]:
    plan, record = folder.read()
    now = standing(folder, plan)
    order = ("done", "diverged", "failed", "running", "interrupted", "waiting")
    counts = ", ".join(f"{now.counts[s]} {s}" for s in order if now.counts[s])
    lines = [f"{plan.name} ({record['hash'][:12]}): {now.ended} of {now.total} trials; {counts}"]
    trials = trials_by_id(plan).values()
    for trial in trials:
        run = now.runs.get(trial.id)
        if run is None or run.ended:
            continue
        metrics = run.metrics("train")
        step = metrics[-1]["step"] if metrics else 0
        lines.append(f"  {run.status}: {trial.label}, step {step}, {folder.trial(trial)}")
    for trial in trials:
        run = now.runs.get(trial.id)
        if run is not None and run.status == "failed":
            why = str(run.summary.get("error", "")).strip().splitlines()
            lines.append(f"  failed: {trial.label}: {why[-1] if why else 'no reason recorded'}")
    if now.ended == now.total:
        lines.append(f"Next: vitc report {folder.path}")
    else:
        started = [c for c in (record["command"], *(h["command"] for h in record["history"])) if c]
        lines.append(f"If it was stopped, it goes on with: {started[-1] if started else '-'}")
    return lines
