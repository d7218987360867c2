"""Trials that other programs ran, a row each in CSV or JSON Lines: which contender is easier?

What `wandb`, Optuna or a script exports is compared as a study's own trials are: the error where
runs learnt, and how often they failed to learn. `trials_report` shows it as a page.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitc.errors import ConfigError, suggest
from vitc.files import once
from vitc.stats.compare import Comparison, compare
from vitc.stats.proportions import learning_line
from vitc.stats.unpaired import UnpairedComparison, compare_unpaired
from vitc.wording import few

SIZE_LIMIT = 256 << 20  # bytes of one file
# Words in a column of states, in lower case; a run that was cut off before its end is neither.
LEARNT = {"", "0", "0.0", "false", "no", "none", "done", "complete", "completed", "finished", "ok"}
_LINES = "Write one JSON object a line, with each key once; or a .csv or .tsv file."
_NOT_PLAIN = re.compile(r"_|[^\x00-\x7f]")  # Python reads 3_0.5, and digits of other alphabets
FAILED = {"1", "1.0", "true", "yes", "nan", "diverged", "failed", "fail", "crashed"}

Unit = Literal["percent", "share"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the files hold what. In JSON, a dot leads inside: `curve.-1.top_1`."""

    error: str = ""
    """Top-1 error, or any other error that lies between 0 and 100 %."""
    accuracy: str = ""
    """In place of `error`: 100 % minus it."""
    contender: str = ""
    """Empty: the name of the file."""
    draw: str = ""
    """Trials of one draw share their settings or seed; empty: nothing is shared."""
    failed: str = ""
    """True, or a state such as `diverged`, where a run failed; beside those without an error."""
    settings: tuple[str, ...] = ()
    """Hyperparameters: on one draw they must agree, or the draws are not shared."""
    unit: Unit | None = None
    """None: percent, unless values look like shares."""

    @property
    def names(self) -> list[str]:
        """All columns that must be there."""
        own = [self.error, self.accuracy, self.contender, self.draw, self.failed]
        return [name for name in (*own, *self.settings) if name]


@dataclass(frozen=True)
class OtherTrial:
    """One row: `error` in percent, nan where there is none."""

    contender: str
    draw: str
    error: float
    marked: bool
    """The file calls it failed, or it has no finite error."""
    settings: Mapping[str, str]
    where: str


@dataclass(frozen=True)
class Rival:
    """One contender against the reference."""

    contender: str
    reference: str
    comparison: Comparison | UnpairedComparison

    @property
    def paired(self) -> bool:
        return isinstance(self.comparison, Comparison)


@dataclass(frozen=True)
class OtherTrials:
    """All trials of the files, and what they show."""

    trials: Sequence[OtherTrial]
    reference: str
    line: float
    """The error, in percent, above which a run failed to learn; inf: not known."""
    chance_error: float
    """What a run that failed to learn counts in curves over all runs; 100 if that is not known."""
    rivals: Sequence[Rival]
    notes: Sequence[str]

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(t.contender for t in self.trials))

    def of(self, contender: str) -> list[OtherTrial]:
        return [t for t in self.trials if t.contender == contender]

    def failed(self, trial: OtherTrial) -> bool:
        return trial.marked or trial.error > self.line


# -- reading ---------------------------------------------------------------------------------------


def read_trials(files: Sequence[Path], columns: Columns) -> list[OtherTrial]:
    """Every row of the files. Raises ConfigError: a file or column that is not there, a value that
    is no number or out of range, a draw that a contender has twice."""
    if bool(columns.error) == bool(columns.accuracy):
        raise ConfigError(
            "Trials in a file need the column of their error, or of their accuracy.",
            "Name one: --error COLUMN or --accuracy COLUMN.",
        )
    stems = Counter(file.stem for file in files)
    if not columns.contender and (alike := [s for s, n in stems.items() if n > 1]):
        raise ConfigError(
            f"{stems[alike[0]]} files are called {alike[0]!r}, and a file is a contender.",
            "Rename them, or name the column of the contenders: --contender COLUMN.",
        )
    found = []
    for file in files:
        rows = list(_rows(file))
        if not rows:
            raise ConfigError(f"{file} holds no trial.")
        _check_columns(file, [row for _, row in rows], columns)
        found += [_trial(file, number, row, columns) for number, row in rows]
    if columns.draw:
        counts = Counter((t.contender, t.draw) for t in found)
        twice = [f"{c} draw {d}" for (c, d), n in counts.items() if n > 1]
        if twice:
            raise ConfigError(
                f"A contender has a draw more than once: {few(twice)}.",
                "Keep one row a contender and draw, or name another column with --draw.",
            )
    _check_unit(found, columns)
    return found


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, values by column) of each row."""
    if not file.is_file():
        raise ConfigError(f"There is no file {file}.")
    if file.stat().st_size > SIZE_LIMIT:
        raise ConfigError(f"{file} is larger than {SIZE_LIMIT >> 20} MiB.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error.reason}.") from None
    if file.suffix.lower() in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text), dialect=_dialect(file, text), strict=True)
        head = Counter(reader.fieldnames or ())
        if twice := [name for name, n in head.items() if n > 1]:
            raise ConfigError(
                f"{file} has more than one column {twice[0]!r}.", "Rename or remove all but one."
            )
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{file}, line {reader.line_num}: the row has not as many values as there "
                        f"are columns ({len(reader.fieldnames or ())})."
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ConfigError(f"{file}, line {reader.line_num}: invalid CSV: {error}.") from None
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values = json.loads(line, object_pairs_hook=once)
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{file}, line {number} is not a JSON object: {error}.", _LINES
                ) from None
            if not isinstance(values, dict):
                raise ConfigError(f"{file}, line {number} is not a JSON object.", _LINES)
            yield number, values


def _dialect(file: Path, text: str) -> type[csv.Dialect]:
    """Commas, or what the first line has instead: semicolons or tabs; tabs in a .tsv."""

    class Dialect(csv.excel):
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","

    first = text.partition("\n")[0]
    if Dialect.delimiter == "," and "," not in first:
        Dialect.delimiter = next((c for c in ";\t" if c in first), ",")
    return Dialect


def _value(row: Mapping[str, Any], column: str) -> Any:
    """What is in a column; None: nothing. A dotted name leads into tables and lists of JSON."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.lstrip("-").isdecimal():
            inside = -len(value) <= int(part) < len(value)
            value = value[int(part)] if inside else None
        else:
            return None
    return value


def _check_columns(file: Path, rows: Sequence[Mapping[str, Any]], columns: Columns) -> None:
    there = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns.names:
        if name not in there and all(_value(row, name) is None for row in rows):
            raise ConfigError(
                f"{file} has no column {name!r}.{suggest(name, there)}",
                f"Its columns: {few(there, most=40)}.",
            )


def _trial(file: Path, number: int, row: Mapping[str, Any], columns: Columns) -> OtherTrial:
    where = f"{file}, line {number}"
    error = _number(_value(row, columns.error or columns.accuracy), where)
    error *= 100.0 if columns.unit == "share" else 1.0
    if columns.accuracy:
        error = 100.0 - error
    if math.isfinite(error) and not -1e-6 <= error <= 100 + 1e-6:
        raise ConfigError(
            f"{where}: an error of {error:g} % is not between 0 and 100.",
            "Errors and accuracies are in percent; add --unit share where they run from 0 to 1.",
        )
    state = str(_value(row, columns.failed) if columns.failed else "").strip().lower()
    if state not in LEARNT | FAILED:
        raise ConfigError(
            f"{where}: {columns.failed} is {state!r}, neither failed nor finished.",
            f"Failed: {', '.join(sorted(FAILED))}; finished: {', '.join(sorted(LEARNT - {''}))}. "
            "Leave out trials that were stopped before their end.",
        )
    name = _value(row, columns.contender) if columns.contender else file.stem
    draw = _value(row, columns.draw) if columns.draw else ""
    if name in (None, "") or (columns.draw and draw in (None, "")):
        raise ConfigError(f"{where}: {columns.contender if draw else columns.draw} is empty.")
    return OtherTrial(
        contender=str(name),
        draw=_plain(draw),
        error=min(max(error, 0.0), 100.0) if math.isfinite(error) else math.nan,
        marked=state in FAILED or not math.isfinite(error),
        settings={s: _plain(_value(row, s)) for s in columns.settings},
        where=where,
    )


def _plain(value: Any) -> str:
    """The text of a draw or setting, the same however a number is spelt: 1e-3 as 0.001."""
    text = str(value).strip()
    if _NOT_PLAIN.search(text):
        return text
    with contextlib.suppress(ValueError):
        number = float(text)
        if math.isfinite(number):
            return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
    return text


def _number(value: Any, where: str) -> float:
    """A value as a number; nan where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        if _NOT_PLAIN.search(str(value)):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{where}: {str(value)[:80]!r} is no number.", "Numbers are such as 30.5 or 1e-3."
        ) from None


def _check_unit(trials: Sequence[OtherTrial], columns: Columns) -> None:
    """Raises ConfigError: without a unit given, a file or contender has no value above 1."""
    if columns.unit is not None:
        return
    of: dict[str, list[float]] = defaultdict(list)
    for t in trials:
        if not math.isnan(t.error):
            for group in (t.where.rpartition(", line ")[0], t.contender):
                of[group].append(100 - t.error if columns.accuracy else t.error)
    shares = [group for group, values in of.items() if max(values) <= 1]
    if shares:
        low, high = min(of[shares[0]]), max(of[shares[0]])
        others = "" if len(shares) == len(of) else "; others are larger"
        raise ConfigError(
            f"{columns.error or columns.accuracy} of {shares[0]} runs from {low:g} to {high:g}, "
            f"which looks like shares of 1{others}.",
            "Add --unit share, or --unit percent if that is what they are. All files need the same "
            "unit.",
        )


# -- comparing -------------------------------------------------------------------------------------


def compare_trials(
    trials: Sequence[OtherTrial], columns: Columns, reference: str = "", classes: int = 0
) -> OtherTrials:
    """Every contender against the reference ("": the first); draw by draw where draws are shared.

    `classes` of the data: runs that stay near chance failed to learn as well; 0: not known, so only
    those that the file marks, or that have no finite error. Raises ConfigError.
    """
    contenders = list(dict.fromkeys(t.contender for t in trials))
    reference = reference or contenders[0]
    if reference not in contenders:
        raise ConfigError(
            f"The reference {reference!r} is not a contender.{suggest(reference, contenders)}",
            f"Known: {few(contenders, most=20)}.",
        )
    if classes == 1:
        raise ConfigError("--classes 1: a classifier has at least two.", "Give their number.")
    if len(contenders) < 2:
        raise ConfigError(
            f"{contenders[0]} is the only contender; a comparison needs two.",
            "Name the column of the contenders: --contender COLUMN.",
        )
    line = learning_line(classes) if classes else math.inf
    rivals, notes = [], []
    near: dict[str, list[str]] = defaultdict(list)
    for name in contenders:
        near[name.casefold().strip()].append(name)
    if alike := [repr(name) for group in near.values() if len(group) > 1 for name in group]:
        notes.append(f"Contenders with almost the same name: {few(alike)}. Are they one?")
    for name in contenders:
        if name != reference:
            a, b = ([t for t in trials if t.contender == c] for c in (name, reference))
            apart = _why_apart(a, b, columns)
            notes.append(f"{name} and {reference}: {apart or 'compared draw by draw.'}")
            rivals.append(_rival(a, b, line, len(contenders) - 1, paired=not apart))
            if not apart:
                notes += _left_over(a, b)
    if not classes:
        notes.append(
            "Runs that stayed near chance count as having learnt: the number of classes is not "
            "known (--classes)."
        )
    if not columns.settings and columns.draw:
        notes.append("That trials of one draw share their settings was not checked (--settings).")
    chance = 100 * (1 - 1 / classes) if classes else 100.0
    return OtherTrials(trials, reference, line, chance, rivals, list(dict.fromkeys(notes)))


def _why_apart(a: Sequence[OtherTrial], b: Sequence[OtherTrial], columns: Columns) -> str:
    """Why two contenders share no draws; empty: they do."""
    if not columns.draw:
        return "no draws are shared (--draw names their column), so all runs are compared with all."
    theirs = {t.draw: t for t in b}
    shared = [(t, theirs[t.draw]) for t in a if t.draw in theirs]
    if not shared:
        return "they have no draw in common, so all runs are compared with all."
    other = [t.draw for t, partner in shared if t.settings != partner.settings]
    if other:
        return (
            f"settings differ on {len(other)} of {len(shared)} draws (the first: {other[0]}), so "
            "draws are not shared, and all runs are compared with all."
        )
    return ""


def _left_over(a: Sequence[OtherTrial], b: Sequence[OtherTrial]) -> list[str]:
    of_a, of_b = {t.draw for t in a}, {t.draw for t in b}
    alone = {a[0].contender: len(of_a - of_b), b[0].contender: len(of_b - of_a)}
    return [
        f"{n} draws of {name} have no partner and are not compared."
        for name, n in alone.items()
        if n
    ]


def _rival(
    a: Sequence[OtherTrial], b: Sequence[OtherTrial], line: float, family: int, paired: bool
) -> Rival:
    names = a[0].contender, b[0].contender
    if paired:
        theirs = {t.draw: t for t in b}
        a = [t for t in a if t.draw in theirs]
        b = [theirs[t.draw] for t in a]
    errors = [np.array([t.error for t in side]) for side in (a, b)]
    failed = [np.array([t.marked or t.error > line for t in side]) for side in (a, b)]
    found: Comparison | UnpairedComparison
    if paired:
        found = compare(errors[0], errors[1], failed[0], failed[1], family=family)
    else:
        found = compare_unpaired(errors[0], errors[1], failed[0], failed[1], family=family)
    return Rival(names[0], names[1], found)
