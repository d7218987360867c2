"""Where does a trained model err? A page in one HTML file, and its numbers beside it."""

from __future__ import annotations

import contextlib
import csv
import io
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitc.config import read_config, to_dict
from vitc.data.sources.base import Split
from vitc.data.store import shown
from vitc.data.thumbnails import thumbnail
from vitc.deploy.evaluation import SPLITS, Evaluation, not_learnt
from vitc.deploy.measures import FEWEST_DECIMALS, Confused
from vitc.deploy.show_run import curves, legs_rows
from vitc.errors import BrokenFileError, ConfigError, RunError
from vitc.files import read_json, to_json, write_atomically
from vitc.resolve import FOLDS, what_is
from vitc.runs.folder import EVENTS, Run
from vitc.runs.results import REPORT, SPENT, last_test, state_of
from vitc.stats.proportions import Interval, wilson
from vitc.views.model import (
    GREY,
    Bullets,
    Chart,
    Details,
    Figures,
    Heading,
    Line,
    Matrix,
    Page,
    Part,
    Table,
    Text,
    Thumbnail,
    Thumbnails,
)
from vitc.wording import counted, duration, no_formula, short

MOST_CLASSES = 200  # rows of the table of classes
IN_MATRIX = 30  # classes; more are shown as pairs
PAIRS = 20  # of confused classes in the table that replaces it
PAIRS_SHOWN, OF_A_PAIR = 6, 4  # as pictures
WORST = 24  # images
SUSPECTED = 24  # labels, as pictures
COPIES = 8  # pairs, as pictures
MOST_NOTES = 60
HEADS = ("image,label,answer,confidence,", "image,label,first,first_confidence,")  # of .csv files


def write_page(e: Evaluation, command: str, file: Path | None = None) -> Path:
    """Write the page to `file` (default: RUN/report.html), and .json and .csv files beside it.

    `command`: what makes the page again. Returns the file. Raises RunError: it cannot be written.
    """
    file = file or Path(e.run) / REPORT
    save_page(run_page(e, command), images_csv(e), file)
    return file


def save_page(page: Page, table: str, file: Path) -> None:
    """Write a page, its values (.json) and a table of images (.csv) beside each other.

    Raises RunError: they cannot be written.
    """
    from vitc.views import figures, html

    charts = [c for part in page.parts if isinstance(part, Figures) for c in part.charts]
    text = html.render(page, {chart.name: figures.inline(chart) for chart in charts})
    try:
        write_atomically(file.with_suffix(".csv"), table.encode("utf-8", "replace"))
        write_atomically(file.with_suffix(".json"), to_json(page.values, indent=1) + "\n")
        write_atomically(file, text)
    except OSError as error:
        raise RunError(
            f"The report {file} cannot be written: {error.strerror or error}.",
            "Name another place: vitc evaluate RUN --report FILE.html.",
        ) from error


def check_beside(file: Path, data: str | None) -> None:
    """Raises ConfigError: a .json or .csv file beside the page `file`, which writing it would
    replace, is no earlier report, or is the `data` to measure on."""
    for beside in (file.with_suffix(".csv"), file.with_suffix(".json")):
        if not beside.exists():
            continue
        is_data = data is not None and Path(data).exists() and beside.samefile(data)
        if is_data or not _is_report(beside):
            what = "the images to measure on" if is_data else "no earlier report"
            raise ConfigError(
                f"--report {file} would replace {beside}, which is {what}.",
                "Choose another name: the page has a .csv and a .json file beside it.",
            )


def _is_report(file: Path) -> bool:
    """Whether a .csv or .json file was written beside a page."""
    with contextlib.suppress(OSError, ConfigError):
        if file.suffix == ".json":
            values = read_json(file)
            return {"schema", "command"} < values.keys() and bool({"fit", "paired"} & values.keys())
        with file.open(encoding="utf-8", errors="replace") as lines:
            return lines.readline(1000).startswith(HEADS)
    return False


def run_page(e: Evaluation, command: str) -> Page:
    """The page: what is wrong first, how it was made last."""
    run = Path(e.run) if what_is(e.run) == "run" else None
    title = f"{Path(e.run).resolve().name}: {e.measured_on}"
    parts: list[Part] = [
        Heading(title, level=1),
        *_verdict(e),
        *([Bullets(e.notes, "warning")] if e.notes else []),
        *([] if run is None else _test(e, run)),
        _classes(e),
        *_confusions(e),
        *_worst(e),
        *_label_errors(e),
        *_copies(e),
        *_certainty(e),
        *(_choices(e.choices, FOLDS) if run is None else _training(run)),
        Heading("How this page was made"),
        Bullets([f"This page: {command}", *_commands(run)]),
    ]
    return Page(title, parts, _values(e, run, command))


def percent(value: Interval | None) -> str:
    """`78.0 % (73.3 to 82.1)`; a dash where there is nothing to compute it from."""
    return "–" if value is None else f"{value.estimate:.1f} % ({value.low:.1f} to {value.high:.1f})"


# -- the verdict -----------------------------------------------------------------------------------


def _verdict(e: Evaluation) -> Iterator[Part]:
    if e.not_learnt:
        yield Text(not_learnt(e), "verdict stop")
    name, baseline = e.largest_class
    yield Text(
        f"{e.top1:.1f} % of {counted(e.n, SPLITS[e.split])} are classified correctly (95 % "
        f"interval {e.interval[0]:.1f} to {e.interval[1]:.1f}). Always answering the largest "
        f"class, {short(name, 60)}, would be correct for {baseline:.1f} %.",
        "verdict",
    )
    yield Text(
        "Intervals are Wilson's, 95 %: they cover the choice of images, not another training run."
    )


def _test(e: Evaluation, run: Path) -> Iterator[Part]:
    """The result on test, once it was read."""
    counts = Run(run).data.get("counts")
    if e.split == "test" or not isinstance(counts, dict) or "test" not in counts:
        return
    found = last_test(run, e.weights)
    top1, n = (found or {}).get("top1"), (found or {}).get("n")
    if not isinstance(top1, int | float) or not isinstance(n, int):
        yield Text(
            "The test images have not been read. Read them once, for the run that is chosen: vitc "
            f"evaluate {shlex.quote(str(run))} --split test"
        )
        return
    low, high = wilson(top1, n)
    yield Text(
        f"Test: {top1:.1f} % of {counted(n, 'image')} (95 % interval {low:.1f} to {high:.1f})."
    )


# -- where it errs ---------------------------------------------------------------------------------


def _classes(e: Evaluation) -> Table:
    present = [c for c in e.per_class if c.f1 is not None]
    worst = sorted(present, key=lambda c: (c.f1.estimate, -c.n) if c.f1 else (0.0, 0))
    rows = [
        (
            short(c.name, 40),
            f"{c.correct} of {c.n}",
            *map(percent, (c.recall, c.precision, c.f1)),
        )
        for c in worst[:MOST_CLASSES]
    ]
    note = ""
    if len(worst) > MOST_CLASSES:
        note = f"The {MOST_CLASSES} worst of {len(worst):,} classes; all are in the JSON file."
    head = ("class", "correct", "recall", "precision", "F1")
    return Table("Classes, worst first", head, rows, note, tight=True)


def _confusions(e: Evaluation) -> Iterator[Part]:
    yield Heading("Confusions")
    names = [short(name, 40) for name in e.classes]
    if len(names) <= IN_MATRIX:
        yield Text("Images of each class (row) by the model's answer (column).")
        yield Matrix("class \\ answer", [short(n, 24) for n in names], e.confusion.tolist())
    elif e.confused:
        rows = [
            (names[c.label], names[c.answer], f"{c.count} of {c.n}", f"{100 * c.count / c.n:.0f} %")
            for c in e.confused[:PAIRS]
        ]
        head = ("class", "answer", "images", "share of the class")
        yield Table("Most confused", head, rows, level=3, tight=True)
    if not e.confused:
        yield Text("No image was confused.")
    for pair in e.confused[:PAIRS_SHOWN]:
        text = f"{names[pair.label]} → {names[pair.answer]}: {pair.count} of {pair.n}"
        yield Heading(text, 3)
        yield Thumbnails([_picture(e, i, answer=False) for i in examples(e, pair)])


def examples(e: Evaluation, pair: Confused) -> list[int]:
    """Positions of a pair's images, those of the most confident answers."""
    answers = e.probabilities.argmax(axis=1)
    found = np.flatnonzero((e.labels == pair.label) & (answers == pair.answer))
    order = np.argsort(-e.probabilities[found, pair.answer], kind="stable")
    chosen: list[int] = found[order][:OF_A_PAIR].tolist()
    return chosen


def _worst(e: Evaluation) -> Iterator[Part]:
    if not len(e.worst):
        return
    yield Heading("Worst images")
    many = f"{min(WORST, len(e.worst))} of {counted(len(e.worst), 'wrong answer')}"
    yield Text(f"{many}: those that gave the label the least probability.")
    yield Thumbnails([_picture(e, i) for i in e.worst[:WORST].tolist()])


def _label_errors(e: Evaluation) -> Iterator[Part]:
    yield Heading("Likely label errors")
    if not len(e.label_errors):
        yield Text("No label of these images is suspected to be wrong.")
        return
    yield Text(
        f"{counted(len(e.label_errors), 'label')} to look at: there the model is as confident of "
        "another class as it is on average on images of that class (confident learning). A "
        "weak model suspects many good labels."
    )
    yield Thumbnails([_picture(e, i) for i in e.label_errors[:SUSPECTED].tolist()])
    if len(e.label_errors) > SUSPECTED:
        yield Text(f"and {len(e.label_errors) - SUSPECTED:,} more, in the CSV file.")


def _copies(e: Evaluation) -> Iterator[Part]:
    copies, train = e.copies, e.train
    if copies is None or train is None:
        return
    yield Heading("Near duplicates of training images")
    held = "all" if copies.held_out == e.n else f"{copies.held_out:,}"
    seen = "all" if copies.train == len(train) else f"{copies.train:,} of {len(train):,}"
    note = f"Compared: {held} of these with {seen} training images."
    if copies.train < len(train) or copies.held_out < e.n:
        note += " vitc data check compares all of them."
    if not copies.pairs:
        yield Text(f"None found. {note}")
        return
    count = counted(len(copies.pairs), SPLITS[e.split])
    yield Text(f"{count} with a near duplicate in training: the result is too good. {note}", "warn")
    pictures = []
    for place, twin in copies.pairs[:COPIES]:
        for split, i, kind in ((e.pictures, place, e.split), (train, twin, "train")):
            label = short(e.classes[int(split.labels[i])], 40)
            lines = [f"{kind}: {label}", file_name(split.names[i])]
            pictures.append(Thumbnail(lines, jpeg(split, i)))
    yield Thumbnails(pictures)


def _picture(e: Evaluation, i: int, answer: bool = True) -> Thumbnail:
    """An image of those measured on; with its label and answer, unless a heading has them."""
    best = int(e.probabilities[i].argmax())
    confidence = f"{100 * float(e.probabilities[i, best]):.0f} %"
    label, given = (short(e.classes[c], 40) for c in (int(e.labels[i]), best))
    about = [f"label: {label}", f"answer: {given}"] if answer else []
    return Thumbnail(
        [*about, f"confidence: {confidence}", file_name(e.names[i])], jpeg(e.pictures, i)
    )


def file_name(name: str) -> str:
    """The last part of an image's name; the JSON and CSV files have all of it."""
    return short(shown(name).rpartition("/")[2], 40)


def jpeg(split: Split, i: int) -> bytes | None:
    with contextlib.suppress(BrokenFileError):
        return thumbnail(split, i)
    return None


# -- how sure it is --------------------------------------------------------------------------------


def _certainty(e: Evaluation) -> Iterator[Part]:
    c, k = e.calibration, e.coverage
    sentence = f"Expected calibration error: {c.ece:.1f} points."
    if c.temperature is not None and c.ece_after is not None:
        how = f"fitted on {counted(e.fit.n, SPLITS[e.fit.split])}"
        if c.cross_fitted:
            how += ", for this error each half's on the other half"
        sentence += (
            f" With the logits divided by a temperature of {c.temperature:.2f}: "
            f"{c.ece_after:.1f} points ({how})."
        )
    elif e.fit.why:
        sentence += f" No temperature is fitted: {e.fit.why}."
    lines = [Line("perfect", GREY, [0, 100], [0, 100], form="curve")]
    sets = [("as trained", 0, c.bins), ("with temperature", 1, c.bins_after)]
    for label, look, bins in sets:
        if bins:
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            low, high = [a.low for a in y], [a.high for a in y]
            lines.append(Line(label, look, x, [a.estimate for a in y], low, high))
    part = [Line("", 0, [x for x, _ in k.curve], [y for _, y in k.curve], form="steps")]
    reliability, accuracy = "Reliability", "Accuracy of the most confident answers"
    charts = [
        Chart("reliability", reliability, "confidence (%)", "accuracy (%)", lines, ylim=(0, 101)),
        _below_all(Chart("coverage", accuracy, "images answered (%)", "accuracy (%)", part)),
    ]
    yield Figures(charts, "How sure it is", sentence)
    if not k.kept:
        yield Text(f"No thresholds for the answer “unknown” are chosen: {e.fit.why}.")
        return
    rows = [
        (
            f"{kept.target:g} %",
            "not reached" if kept.threshold is None else exact(kept.threshold),
            percent(kept.coverage),
            percent(kept.accuracy),
        )
        for kept in k.kept
    ]
    confidence = "that vitc predict prints."
    if e.answered_by:
        confidence = (
            f"of {e.answered_by} of the folds. vitc predict prints that of the mean of all their "
            "models, which differs and is usually lower: choose its thresholds on other images."
        )
    note = (
        f"Thresholds were chosen on {counted(e.fit.n, SPLITS[e.fit.split])}, for the confidence "
        f"{confidence} Images of none of the classes can get a high confidence, too: "
        "try some before relying on it."
    )
    head = ("to be correct in", "confidence at least", "images answered", "of these correct")
    yield Table("When to answer “unknown”", head, rows, note, tight=True)


def exact(threshold: float) -> str:
    """With all its decimals: typed, it keeps the same answers."""
    return np.format_float_positional(threshold, min_digits=FEWEST_DECIMALS)


def _below_all(chart: Chart) -> Chart:
    """The chart of percents with an axis that does not reach beyond 100 %."""
    shown = [y for line in chart.lines for y in line.y] or [0.0]
    room = 0.03 * (100 - min(shown)) or 0.5  # so little that no tick above 100 % is in it
    return replace(chart, ylim=(None, 100 + min(0.5, room))) if max(shown) > 95 else chart


# -- how it was trained ----------------------------------------------------------------------------


def _training(run: Path) -> Iterator[Part]:
    files, config = Run(run), read_config(run)
    titles = {"loss": "Training loss", "top1": "Validation accuracy"}
    charts = [replace(c, title=titles[c.name]) for c in curves("", files.metrics())]
    charts = [_below_all(c) if c.name == "top1" else c for c in charts]
    charts = [c for c in charts if any(len(line.x) > 1 for line in c.lines)]
    if charts:
        yield Figures(charts, "Training")
    summary = files.summary
    yield Table("Where the time went", ("", "time", "share"), time_rows(summary))
    yield from _choices(_notes(run / EVENTS), EVENTS)
    versions = summary.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    facts = {
        "model": config.model.name,
        "images": config.data.path or config.data.source,
        "fingerprint of the images": summary.get("data_fingerprint"),
        "steps": summary.get("step"),
        "device": summary.get("device"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    rows = [(name, short(str(value))) for name, value in facts.items() if value]
    yield Table("The run", ("", ""), [*rows, *legs_rows(run, config)])
    yield Details("Every setting", to_json(to_dict(config), indent=1))


def _choices(notes: Sequence[str], file: str) -> Iterator[Part]:
    if notes:
        yield Heading("Choices and events")
        yield Bullets(notes[:MOST_NOTES])
    if len(notes) > MOST_NOTES:
        yield Text(f"and {len(notes) - MOST_NOTES:,} more in {file}.")


def time_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the run spent its seconds on: name, time, share; runs of earlier versions know less."""
    spent = summary.get("time_spent")
    if not isinstance(spent, dict):
        spent = {"steps": summary.get("train_seconds")}
    spent = {name: s for name, s in spent.items() if isinstance(s, int | float)}
    total = max(sum(spent.values()), 1e-9)
    return [
        (text, duration(spent[name]), f"{100 * spent[name] / total:.0f} %")
        for name, text in SPENT.items()
        if name in spent
    ]


def _notes(events: Path) -> list[str]:
    """The lines of events.log without their times, each once."""
    if not events.is_file():
        return []
    lines = events.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = dict.fromkeys(line.partition("  ")[2] for line in lines)
    return [short(t, 500) for t in texts if t and t != "started" and not t.startswith("done at")]


def _commands(run: Path | None) -> list[str]:
    if run is None:
        return []
    folder = shlex.quote(str(run))
    config = shlex.quote(str(run / "config.json"))
    return [
        f"The same training once more: vitc train {config} --out ANOTHER_FOLDER",
        f"Classify other images: vitc predict {folder} IMAGE...",
        f"Save the model for use elsewhere: vitc save {folder} FOLDER",
    ]


# -- for machines ----------------------------------------------------------------------------------


def _values(e: Evaluation, run: Path | None, command: str) -> dict[str, Any]:
    """All numbers of the page."""
    name, baseline = e.largest_class
    train = () if e.train is None else e.train.names
    return {
        "schema": 1,
        "command": command,
        "state": None if run is None or e.train is None else state_of(run, e.weights),
        **e.to_dict(),
        "largest_class": {"name": name, "top1": baseline},
        "not_learnt": [c.name for c in e.not_learnt],
        "per_class": [asdict(c) for c in e.per_class],
        "confused": [
            {"class": e.classes[c.label], "answer": e.classes[c.answer], "count": c.count, "n": c.n}
            for c in e.confused
        ],
        "worst": _images(e, e.worst[:WORST]),
        "label_errors": _images(e, e.label_errors),
        "near_duplicates": e.copies
        and {
            "compared": {e.split: e.copies.held_out, "train": e.copies.train},
            "pairs": [(e.names[i], train[j]) for i, j in e.copies.pairs],
        },
        "fit": asdict(e.fit),
        "calibration": asdict(e.calibration),
        "coverage": asdict(e.coverage),
        "test": None if run is None else last_test(run, e.weights),
    }


def _images(e: Evaluation, places: Iterable[int]) -> list[dict[str, Any]]:
    best = e.probabilities.argmax(axis=1)
    return [
        {
            "image": e.names[i],
            "label": e.classes[int(e.labels[i])],
            "answer": e.classes[int(best[i])],
            "confidence": float(e.probabilities[i, best[i]]),
            "probability_of_label": float(e.probabilities[i, e.labels[i]]),
        }
        for i in map(int, places)
    ]


def images_csv(e: Evaluation) -> str:
    """One line for each image."""
    out = io.StringIO()
    rows = csv.writer(out)
    suspected = set(e.label_errors.tolist())
    copies = {} if e.copies is None or e.train is None else dict(e.copies.pairs)
    found = _images(e, range(e.n))
    if found:
        rows.writerow([*found[0], "likely_label_error", "near_duplicate_of"])
    for i, image in enumerate(found):
        twin = e.train.names[copies[i]] if e.train is not None and i in copies else ""
        rows.writerow(map(no_formula, [*image.values(), int(i in suspected), twin]))
    return out.getvalue()
