"""How good is what is trained on all of these images? K runs, each validated on a part of its own.

    FOLDER/folds.json             the settings that all runs share, why they are so, and how many
                                  runs there are
    FOLDER/seed_1_fold_1/ ...     run folders like any other
    FOLDER/report.html, ...       the page of all images, each classified by models that it
                                  was held out from

The folder is a classifier: the mean of the probabilities of all its runs.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.config import RunConfig, flat_values, from_saved, leaves, to_saved
from vitc.data.dataset import fold_counts, open_data
from vitc.errors import CheckpointError, ConfigError, DataError, InterruptedRun
from vitc.files import LOCK, read_json, write_json
from vitc.resolve import FOLDS, load_config, resolve_config, with_data
from vitc.runs.folder import Run
from vitc.runs.results import REPORT
from vitc.wording import counted, few

if TYPE_CHECKING:
    from vitc.deploy.evaluation import Evaluation
    from vitc.training.loop import RunResult

SCHEMA = 1


@dataclass(frozen=True)
class Folds:
    """The runs of one folder: `config` with every data.fold, under `seeds` values of train.seed."""

    path: Path
    config: RunConfig
    seeds: int
    notes: tuple[str, ...] = ()
    """Why the config is so, and warnings; unknown of folds of earlier versions."""

    @staticmethod
    def read(path: Path) -> Folds:
        values = read_json(path / FOLDS)
        config, seeds, notes = (values.get(k) for k in ("config", "seeds", "notes"))
        if values.get("schema") != SCHEMA or not isinstance(config, dict) or type(seeds) is not int:
            raise ConfigError(f"{path / FOLDS} is damaged, or of another version.")
        texts = tuple(map(str, notes)) if isinstance(notes, list) else ()
        return Folds(path, from_saved(config, path / FOLDS), seeds, texts)

    def write(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        values = {"schema": SCHEMA, "seeds": self.seeds, "config": to_saved(self.config)}
        write_json(self.path / FOLDS, {**values, "notes": list(self.notes)})

    @property
    def count(self) -> int:
        return self.config.data.folds or 0

    @property
    def places(self) -> list[Path]:
        """Every run's folder, seed by seed."""
        return [self.path / f"seed_{seed}_fold_{fold}" for seed, fold in self._numbers()]

    def runs(self) -> dict[Path, RunConfig]:
        """Every run's folder and config, seed by seed."""
        first = self.config.train.seed
        configs = (
            load_config(self.config, **{"data.fold": fold, "train.seed": first + seed - 1})
            for seed, fold in self._numbers()
        )
        return dict(zip(self.places, configs, strict=True))

    def finished(self) -> list[Path]:
        """Every run's folder. Raises CheckpointError: some have not finished."""
        places = self.places
        lacking = [path.name for path in places if Run(path).status != "done"]
        if lacking:
            raise CheckpointError(
                f"{self.path} has {counted(len(lacking), 'unfinished run')} of {len(places)}: "
                f"{few(lacking, 3)}.",
                f"Resume them: {page_command(self)}",
            )
        return places

    def _numbers(self) -> Iterator[tuple[int, int]]:
        """Seed and fold of every run, from 1."""
        return itertools.product(range(1, self.seeds + 1), range(1, self.count + 1))


def plan_folds(
    images: Path,
    out: Path,
    times: tuple[int, int],
    budget: float | None,
    start: str,
    settings: Mapping[str, Any],
) -> tuple[Folds, list[str], str]:
    """The folds in `out`, with more seeds where these are asked for, or new ones; notes on them; a
    data.group to ask about (see `Proposal.group`).

    `times`: how many folds and seeds. `budget`: seconds for all runs together. Raises ConfigError:
    other folds are there, or there are too few images for so many.
    """
    from vitc.training.auto import propose

    folds, seeds = times
    if (out / FOLDS).is_file():
        found = Folds.read(out)
        place = found.config.data.path
        if found.count != folds or place is None or Path(place).resolve() != images.resolve():
            raise ConfigError(
                f"{out} holds {found.count} folds of {place}, not {folds} of {images}.",
                "Choose another --out, or repeat the command with those.",
            )
        _refuse_changes(found, settings)
        notes = [f"{out} holds these folds: what is unfinished is trained, as it was planned."]
        if budget is not None:
            notes.append("--budget has no effect: the runs' length was chosen when they started.")
        if start != "auto":
            notes.append("--start has no effect: the runs have started already.")
        if seeds < found.seeds:
            notes.append(f"--seeds {seeds} has no effect: there are {found.seeds} already.")
        return replace(found, seeds=max(seeds, found.seeds)), notes, ""
    if out.exists() and not (out.is_dir() and set(os.listdir(out)) <= {LOCK}):
        raise ConfigError(
            f"{out} is not empty, and holds no folds.", "Choose another --out for them."
        )
    own = {"data.test_fraction": 0.0, **settings, "data.folds": folds}
    own = {"data.fold": _smallest_fold(images, own), **own}  # a batch for it suits every other
    proposal = propose(images, budget, own, start, runs=folds * seeds)
    runs = counted(folds * seeds, "run")
    note = f"folds: {folds}, {counted(seeds, 'seed')} — {runs} of the length below"
    made = Folds(out, proposal.config, seeds, tuple(proposal.lines))
    return made, [note, *proposal.lines], proposal.group


def _smallest_fold(images: Path, settings: Mapping[str, Any]) -> int:
    """The fold with the fewest training images. Raises ConfigError: a fold has nothing to validate
    on."""
    own = {key: value for key, value in settings.items() if key.startswith("data.")}
    config = resolve_config(with_data(RunConfig(), str(images.absolute())), **own).data
    counts = fold_counts(config)
    filled = sum(val > 0 for _, val in counts)
    if filled < (config.folds or 0):
        unit = "images" if config.group is None else "groups of data.group"
        raise ConfigError(
            f"--folds {config.folds}: only {filled} folds would have images to validate on, as "
            f"there are too few {unit}.",
            f"Use --folds {filled}, or fewer.",
        )
    return 1 + min(range(len(counts)), key=lambda i: counts[i][0])


def _refuse_changes(found: Folds, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError: `settings` are other ones than those that the folds share."""
    own = flat_values(settings)
    if own.get("train.precision") == "auto":  # what was decided when they started
        del own["train.precision"]
    before, now = leaves(found.config), leaves(load_config(found.config, **own))
    if other := [k for k in before.keys() | now.keys() if before.get(k) != now.get(k)]:
        raise ConfigError(
            f"{found.path} holds folds of another config: "
            + ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in sorted(other)[:5])
            + ".",
            "Choose another --out, or repeat the command without these settings.",
        )


def train_folds(folds: Folds) -> RunResult:
    """Train what is unfinished, then measure: the evaluation is of all images, and so is the
    page."""
    from vitc.deploy.run_page import write_page
    from vitc.training.loop import RunResult, run

    folds.write()
    runs = folds.runs()
    for path, config in runs.items():
        if Run(path).status != "done":
            begun = (path / "config.json").exists()
            try:
                run(config, path, notes=() if begun else folds.notes)
            except InterruptedRun as stopped:  # that run alone is no page of all
                resume = f"Resume with: {page_command(folds)}"
                raise InterruptedRun(stopped.message, resume, stopped.signal_number) from stopped
    found = out_of_fold(folds)
    report = write_page(found, page_command(folds), folds.path / REPORT)
    top1 = {path.name: Run(path).top1 for path in runs}
    summary = {"status": "done", "run": str(folds.path), **found.to_dict(), "runs": top1}
    write_json(folds.path / "summary.json", summary)
    return RunResult(folds.path, "done", found.top1, summary, report, found)


def out_of_fold(folds: Folds, device: str = "auto") -> Evaluation:
    """What the runs show on all images, each by the models that it was held out from: the mean of
    their probabilities. Nothing is fitted on images that such a model saw under another name."""
    from vitc.deploy.classifier import Classifier
    from vitc.deploy.evaluation import SplitLogits, measure, predict_split, unreadable
    from vitc.deploy.measures import probabilities
    from vitc.training.measured import Measured, too_good

    places = folds.finished()
    own = replace(
        folds.config.data, folds=None, fold=1, val_fraction=0.0, max_train=None, max_val=None
    )
    data = open_data(own, folds.config.model.in_chans)
    images = data.splits["train"]
    place = {name: i for i, name in enumerate(images.names)}
    sums = np.zeros((len(images), len(data.classes)), np.float64)
    answered = np.zeros((folds.seeds, len(images)), np.bool_)
    trained_on = np.zeros(len(images), np.bool_)  # by a model that answered: under another name
    right = np.zeros((folds.seeds, len(images)), np.bool_)
    for number, path in enumerate(places):
        classifier = Classifier.load(path, device)
        answers = predict_split(classifier)
        assert answers.seen is not None  # they are images of the run's own
        rows = np.array([place[name] for name in answers.names], np.int64)
        sums[rows] += probabilities(answers.logits)
        seed = number // folds.count
        answered[seed, rows] = True
        trained_on[rows] |= answers.seen
        right[seed, rows] = answers.logits.argmax(axis=1) == answers.labels
    there = np.flatnonzero(answered.all(axis=0))
    if not len(there):
        raise DataError("None of the images could be read: there is nothing to measure.")
    logits = np.log(np.maximum(sums[there] / folds.seeds, 1e-30)).astype(np.float32)
    pictures = images.take(there)
    single = 100 * right[:, there].mean(axis=1)
    notes: tuple[str, ...] = (
        f"Each image is classified by models that it was held out from ({folds.count} folds, "
        f"{counted(folds.seeds, 'seed')}); a model of all images should do a little better.",
        f"One model alone: {single.mean():.1f} % correct"
        + (f" (seeds: {', '.join(f'{s:.1f}' for s in single)})." if folds.seeds > 1 else "."),
    )
    lost = [images.names[i] for i in np.flatnonzero(~answered.all(axis=0)).tolist()]
    notes += (unreadable(lost, len(images)),) if lost else ()
    notes += _chosen_on(places)
    seen = trained_on[there]
    notes += (too_good(int(seen.sum()), len(pictures)),) if seen.any() else ()
    found = SplitLogits(
        tuple(pictures.names),
        pictures.labels,
        logits,
        Measured(data, pictures, "all", seen, notes),
        pictures,
        seen,
    )
    many = folds.seeds
    answered_by = "a single model" if many == 1 else f"the mean of {many} models"
    measured = measure(classifier, found, str(folds.path))
    return replace(measured, answered_by=answered_by, choices=folds.notes)


def _chosen_on(places: Sequence[Path]) -> tuple[str, ...]:
    """A note where weights were chosen by their result on the images that they are measured on."""
    summaries = (Run(path).summary for path in places)
    many = [n for s in summaries if isinstance(n := s.get("best_of"), int)]
    if not many:
        return ()
    best = f"{min(many)}" if min(many) == max(many) else f"{min(many)} to {max(many)}"
    return (
        f"The weights in {len(many)} of {counted(len(places), 'run')} are the best of {best} "
        "evaluations on the images that were held out from them: the result is a little too good.",
    )


def page_command(folds: Folds) -> str:
    """What trains the rest and makes the page again."""
    words = ["vitc", "train", str(folds.config.data.path), "--out", str(folds.path)]
    return shlex.join([*words, "--folds", str(folds.count), "--seeds", str(folds.seeds)])
