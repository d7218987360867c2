"""Which columns of a table hold images, labels and splits? For lists, tables and JSON labels."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitc.data.config import DataConfig
from vitc.data.sources.base import some
from vitc.data.split_words import HELD_OUT, SPLIT_OF, SPLITS, as_setting, parse_splits, split_values
from vitc.errors import ConfigError, DataError, suggest, unknown
from vitc.wording import few

# Names are compared in lower case and without spaces and marks: File_Name is filename.
PATH_NAMES = (
    *("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
    *("img", "imgpath", "imgfile", "imgname", "imagefilename", "fname"),
    *("imageid", "imgid", "id", "name"),  # only where there is none of the others
)
LABEL_NAMES = (
    *("label", "labels", "cls", "class", "classes", "target", "category", "finelabel", "y"),
    *("labelname", "classname", "categoryname", "targetname", "classlabel"),
    *("labelid", "classid", "categoryid", "targetid", "labelidx", "classidx", "classindex"),
)
SPLIT_NAMES = (
    *("split", "splits", "subset", "partition", "set", "datasplit", "datasetsplit", "splitname"),
    *("splitset", "usage", "phase", "traintest", "traintestsplit", "trainvaltest"),
    *("trainvalsplit", "trainvaltestsplit"),
)
_FLAGS = {
    **dict.fromkeys(("isval", "isvalid", "isvalidation", "isdev", "val", "validation"), "val"),
    **dict.fromkeys(("istest", "istesting", "test"), "test"),
    **dict.fromkeys(("istrain", "istraining", "train"), "train"),
}
_MORE_FLAGS = {  # where they are of true and false
    form.format(word): split
    for word, split in (*SPLIT_OF.items(), *dict.fromkeys(HELD_OUT, "held out").items())
    for form in ("is{}", "in{}", "{}flag", "is{}image", "is{}set", "in{}set")
    if form.format(word) not in _FLAGS
}
_MAYBE_VAL = ("valid", "holdout")  # where they are flags
_FOLDS = frozenset({"fold", "folds", "kfold", "cvfold", "foldid", "cv"})
_TRUE = frozenset(("1", "1.0", "true", "t", "yes", "y"))
_FALSE = frozenset(("0", "0.0", "false", "f", "no", "n"))
MAX_VALUES = 24  # different values of a column that can be a split
Values = Mapping[str, Collection[str] | None]  # column -> its values; None: more than MAX_VALUES


def plain(name: str) -> str:
    """A column's name for comparing: lower case, letters and digits only."""
    return re.sub(r"[\W_]+", "", name.lower())


def known(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns that have one of `names`, in the order of `names`."""
    found = [column for column in columns if plain(column) in names]
    return sorted(found, key=lambda column: names.index(plain(column)))


def is_known(name: str) -> bool:
    """Whether a column of this name may hold paths, labels or splits."""
    one = plain(name)
    return one in PATH_NAMES or one in LABEL_NAMES or is_split(name)


def is_split(name: str) -> bool:
    """Whether a column of this name may divide the images into splits."""
    one = plain(name)
    return one in SPLIT_NAMES or one in _FLAGS or one in _MORE_FLAGS or one in _MAYBE_VAL


def may_split(name: str, value: Any) -> bool:
    """Whether a column may divide the images, by its name or one of its values."""
    word = isinstance(value, str) and len(value) <= 64 and bool(split_values([value.strip()]))
    return word or is_split(name) or plain(name) in _FOLDS


def divides(name: str, values: Collection[str] | None) -> bool:
    """Whether some values of a column that `may_split` can be splits: names, or true and false."""
    if plain(name) in SPLIT_NAMES:
        return bool(split_values(values or ()))
    return not is_split(name) or bool({v.lower() for v in values or ()} & (_TRUE | _FALSE))


def text_of(value: Any) -> str:
    """A value of JSON or of a table as text."""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def choose_column(
    setting: str,
    wanted: str | None,
    columns: Collection[str],
    found: Sequence[str],
    where: str,
    hint: str,
) -> str:
    """The column asked for, or the first of `found`, by name.

    Raises ConfigError: it does not exist, or there is none.
    """
    if wanted is not None:
        if wanted not in columns:
            raise unknown(f"data.{setting}", wanted, columns, hint)
        return wanted
    if not found:
        what = setting.partition("_")[0]
        raise ConfigError(
            f"{where} has no column that can be the {what}.",
            f"{hint} Choose one with --data.{setting} NAME.",
        )
    return found[0]


def choose_label(
    wanted: str | None,
    columns: Collection[str],
    found: Sequence[str],
    values: Callable[[str], Iterable[Any]],
    where: str,
    hint: str,
) -> str:
    """The column of labels: the one asked for, or the first of `found`.

    values: those of a column, read only where several can be the label. Raises ConfigError: none,
    or several that label the images differently (class_id and class_name do not).
    """
    for other in found[1:] if wanted is None else ():
        if not one_to_one(zip(values(found[0]), values(other), strict=False)):
            raise ConfigError(
                f"{where} has several columns that can be the label: {some(found, 5)}.",
                f"{hint} Choose one with --data.label_column NAME.",
            )
    return choose_column("label_column", wanted, columns, found, where, hint)


def one_to_one(pairs: Iterable[tuple[Any, Any]]) -> bool:
    """Whether each left value stands beside one right value, and the other way round."""
    there: dict[Any, Any] = {}
    back: dict[Any, Any] = {}
    return all(there.setdefault(a, b) == b and back.setdefault(b, a) == a for a, b in pairs)


def check_header(where: str, header: Sequence[str]) -> None:
    """Raises ConfigError: a column's name stands twice."""
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    if twice:
        raise ConfigError(
            f"{where} has two columns named {twice[0]!r}.", "Rename or remove one of them."
        )


def usage(used: Iterable[str | None], columns: Iterable[str], what: str = "Columns") -> str:
    """`Columns used: path, label; not used: date.`"""
    names = [name for name in used if name is not None]
    rest = [name or "(no name)" for name in columns if name not in names]
    if not names:
        return f"{what} not used: {few(rest, 12)}."
    text = f"{what} used: {', '.join(names)}"
    return f"{text}; not used: {few(rest, 12)}." if rest else f"{text}."


# -- splits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitRule:
    """The columns of splits and what their values mean; and notes.

    tables: value -> split, for each column. In one of is_train, false is "rest".
    """

    columns: tuple[str, ...] = ()
    tables: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def split(self, values: Sequence[str]) -> int:
        """The split of a row, as an index into SPLITS. Raises ValueError: its flags contradict."""
        found = {table[value] for table, value in zip(self.tables, values, strict=True)}
        held = found - {"train", "rest"}
        contrary = len(held) > 1 or (("rest" in found) != bool(held) and self._has_train_flag)
        if contrary:
            pairs = ", ".join(f"{c} {v}" for c, v in zip(self.columns, values, strict=True))
            raise ValueError(f"contradicting splits: {pairs}")
        return SPLITS.index(held.pop()) if held else 0

    @property
    def _has_train_flag(self) -> bool:
        return any("rest" in table.values() for table in self.tables)


def split_rule(config: DataConfig, values: Values, where: str) -> SplitRule:
    """How the splits follow from the columns, those of images and labels left out.

    Raises ConfigError: data.split_column or data.splits that do not fit; DataError: several columns
    that could be the split, or values that are no splits.
    """
    wanted = parse_splits(config.splits) if config.splits else None
    if config.split_column is not None:
        if config.split_column not in values:
            raise unknown("data.split_column", config.split_column, values)
        return _rule_of(config.split_column, values, wanted, where)
    if wanted:
        fitting = [c for c, v in values.items() if v is not None and wanted.keys() <= set(v)]
        if len(fitting) != 1:
            what = "no column has" if not fitting else f"{some(fitting)} have"
            raise ConfigError(
                f"data.splits names the values {some(wanted)}, and {what} them in {where}.",
                "Name the column with --data.split_column.",
            )
        return _rule_of(fitting[0], values, wanted, where)
    if wanted is not None:
        return SplitRule()
    return _found_rule(values, where)


def _found_rule(values: Values, where: str) -> SplitRule:
    """The columns that are recognised: by name, by flags, or by values that are all splits."""
    named, flags, alike, notes = [], [], [], []
    for column, distinct in values.items():
        name = plain(column)
        if distinct is None or not distinct:
            continue
        boolean = {v.lower() for v in distinct} <= _TRUE | _FALSE
        if name in SPLIT_NAMES:
            named.append(column)
        elif (name in _FLAGS and (boolean or name.startswith("is"))) or (
            name in _MORE_FLAGS and boolean and len(distinct) > 1
        ):
            flags.append(column)
        elif name in _MAYBE_VAL and boolean and len(distinct) > 1:
            raise DataError(
                f"The column {column!r} of {where} may mark the validation split.",
                f"If so: --data.split_column {column} --data.splits val=VALUE; else --data.splits "
                "none.",
            )
        elif len(distinct) > 1 and _all_splits(distinct):
            alike.append(column)
        elif name in _FOLDS:
            first = sorted(distinct)[0]
            notes.append(
                f"The column {column!r} is not used as a split: --data.split_column {column} "
                f"--data.splits val={first} validates on fold {first}."
            )
    readable = [column for column in named if _all_splits(values[column] or ())]
    named = readable if len(named) > 1 and readable else named
    if named:  # beside a split, flags count that hold some image out
        flags = [c for c in flags if not _leaves_all(c, values[c] or ())]
    groups = [*([c] for c in named), *([flags] if flags else []), *([c] for c in alike)]
    if len(groups) > 1:
        columns = [column for group in groups for column in group]
        raise DataError(
            f"{where} has several columns that can be the split: {some(columns, 5)}.",
            "Choose one with --data.split_column NAME; --data.splits none uses none.",
        )
    if named:
        rule = _rule_of(named[0], values, None, where)
    elif flags:
        rule = _flag_rule(flags, values, where)
        held = dict.fromkeys(f"is{word}" for word in HELD_OUT)
        notes += [_guess(c) for c in flags if plain(c)[:2] != "is" or plain(c) in held]
    elif alike:
        rule = _rule_of(alike[0], values, None, where)
        notes.append(_guess(alike[0]))
    else:
        rule = SplitRule()
    return SplitRule(rule.columns, rule.tables, tuple(notes))


def _leaves_all(flag: str, distinct: Collection[str]) -> bool:
    """Whether a flag leaves all images in training."""
    true = (_FLAGS | _MORE_FLAGS)[plain(flag)] == "train"
    return {v.lower() for v in distinct} <= (_TRUE if true else _FALSE)


def _guess(column: str) -> str:
    setting = f"--data.split_column {shlex.quote(column)}"
    return (
        f"Guessed from its values: the column {column!r} is the split. Fixed by {setting}, or "
        "--data.splits none."
    )


def _all_splits(distinct: Collection[str]) -> bool:
    found = split_values(distinct)
    return len(found) == len(distinct) and "train" in found.values()


def _rule_of(
    column: str, values: Values, wanted: Mapping[str, str] | None, where: str
) -> SplitRule:
    """One column's: by data.splits, by split words, or a flag's."""
    distinct = values[column]
    if distinct is None:
        raise DataError(
            f"The column {column!r} of {where} has more than {MAX_VALUES} values: too many for "
            "splits.",
            "Choose another with --data.split_column NAME.",
        )
    if not wanted and (plain(column) in _FLAGS or plain(column) in _MORE_FLAGS):
        return _flag_rule([column], values, where)
    table = split_values(distinct)
    if wanted:
        absent = [value for value in wanted if value not in distinct]
        if absent:
            raise ConfigError(
                f"data.splits names the value {absent[0]!r}, which the column {column!r} of "
                f"{where} does not have.{suggest(absent[0], distinct)}",
                f"Its values: {some(sorted(distinct), 10)}.",
            )
        if "train" not in wanted.values():
            table = {value: table.get(value, "train") for value in distinct}
        table |= wanted
    strange = sorted(value for value in distinct if value not in table)
    if strange:
        near = suggest(strange[0], [*SPLITS, *table])
        setting = as_setting({value: "train" for value in strange[:1] if value} or {"...": "train"})
        raise DataError(
            f"{where}: unknown split {some(strange, 5)}.{near}",
            f"Known in the column {column!r}: train, val (validation, dev), test. Other words: "
            f"{setting} or so; --data.splits none ignores the column.",
        )
    return SplitRule((column,), (table,))


def _flag_rule(columns: Sequence[str], values: Values, where: str) -> SplitRule:
    """Columns such as is_valid and is_test, of true and false."""
    splits = [(_FLAGS | _MORE_FLAGS)[plain(column)] for column in columns]
    held = "test" if "val" in splits else "val"
    splits = [held if split == "held out" else split for split in splits]
    tables = []
    for column, split in zip(columns, splits, strict=True):
        distinct = values[column] or ()
        strange = [v for v in distinct if v.lower() not in _TRUE | _FALSE]
        if strange:
            raise DataError(
                f"{where}: the column {column!r} has the values {some(strange)}; it must be true "
                "or false.",
                f"--data.split_column {column} --data.splits val=VALUE uses it; --data.splits none "
                "ignores it.",
            )
        no = "rest" if split == "train" else "train"
        tables.append({v: split if v.lower() in _TRUE else no for v in distinct})
    if set(splits) == {"train"} and any("rest" in table.values() for table in tables):
        false = next(v for v, found in tables[0].items() if found == "rest")
        true = next((v for v, found in tables[0].items() if found == "train"), "1")
        raise DataError(
            f"The column {columns[0]!r} of {where} leaves open whether the other images are for "
            "validation or for the test.",
            f"--data.split_column {columns[0]} --data.splits train={true},val={false} or "
            f"train={true},test={false}.",
        )
    return SplitRule(tuple(columns), tuple(tables))


def shared_split(named: str | None, of_row: int, where: str) -> int:
    """The split of a row where its file's name speaks of one too. Raises DataError."""
    if named is not None and named != "train" and SPLITS[of_row] != named:
        raise DataError(
            f"The name of {where} speaks of the {named} split, a column in it of {SPLITS[of_row]}.",
            "Rename the file, or decide with --data.splits none.",
        )
    return of_row
