"""Which names mean a split? Of folders, shards and column values: one set of words for all."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vitc.errors import ConfigError, suggest

SPLIT_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst"),
}
SPLITS = tuple(SPLIT_WORDS)
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
HELD_OUT = frozenset({"eval", "evaluation", "holdout"})  # val; beside a val split, test
# Words that leave a split's name a split's name: train_images, seg_train, Test-Set.
DECORATIONS = frozenset(
    re.findall(
        r"\w+",
        """set sets data dataset datasets image images img imgs pic pics picture pictures photo
        photos sample samples split splits subset part partition folder folders dir directory file
        files seg raw orig original full final clean cropped resized processed preprocessed aug
        augmented jpg jpeg png of shard shards chunk batch default""",
    )
)
_GLUED = re.compile(
    "(train|training|val|valid|validation|test|testing)(set|data|dataset|images?|imgs?|split|dir)"
)


class SplitName(NamedTuple):
    """A name with the word of one split in it."""

    split: str  # "train", "val", "test", or "held out" for a word of HELD_OUT
    rest: tuple[str, ...]  # its words that are neither the split's nor decoration


def read_name(name: str) -> SplitName | None:
    """The split that a name speaks of; None for a name of none, or of several.

    `rest` is empty for a name that can hardly mean anything else: train, Test-Set, seg_train,
    val2017. With a rest (dogs_train, dev-board, train station) it is a guess.
    """
    plain = unicodedata.normalize("NFKC", name)  # full width, as Japanese keyboards write it
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain)
    lower = re.sub(r"hold[\W_]?out", "holdout", spaced.lower())
    words: list[str] = []
    for word in re.split(r"[\W\d_]+", lower):
        glued = _GLUED.fullmatch(word)
        words += glued.groups() if glued else [word] if word else []
    splits = {SPLIT_OF.get(word, "held out") for word in words if _is_split(word)}
    if len(splits) != 1:
        return None
    rest = tuple(w for w in words if not _is_split(w) and w not in DECORATIONS)
    return SplitName(splits.pop(), rest)


def _is_split(word: str) -> bool:
    return word in SPLIT_OF or word in HELD_OUT


def read_names(names: Iterable[str]) -> dict[str, SplitName]:
    """Name -> its split, for those that have one, in a place where these names stand together.

    eval and holdout are the validation split; where another name is that, they are the test.
    """
    found = {name: read for name in names if (read := read_name(name)) is not None}
    held = "test" if any(read.split == "val" for read in found.values()) else "val"
    return {
        name: SplitName(held, read.rest) if read.split == "held out" else read
        for name, read in found.items()
    }


def begun_name(name: str) -> str | None:
    """The split that a name begins like: Trainingsdaten, Testdaten, Validierung, tr, te, va.

    Classes begin so, too (trains, valves, tr for Turkish): to be used where something else speaks
    for splits.
    """
    lower = unicodedata.normalize("NFKC", name).lower()
    word = re.match(r"[\W\d_]*([^\W\d_]*)", lower)
    return next((s for s in SPLITS if word and (word[1].startswith(s) or word[1] == s[:2])), None)


def split_values(values: Iterable[str]) -> dict[str, str]:
    """Value of a split column -> split, for the values that are one; PublicTest is of FER2013."""
    special = {"publictest": "val", "privatetest": "test"}
    names = read_names(values)
    found = {value: read.split for value, read in names.items() if not read.rest}
    for value in values:
        if value.lower() in special:
            found[value] = special[value.lower()]
    return found


def parse_splits(text: str) -> dict[str, str]:
    """`data.splits`: "train=training_set,test=test_set" -> {"training_set": "train", ...}.

    "none" -> {}. Raises ConfigError.
    """
    if text.strip().lower() == "none":
        return {}
    found: dict[str, str] = {}
    for part in text.split(","):
        split, equals, name = (piece.strip() for piece in part.partition("="))
        wrong = ""
        if not equals or not name:
            wrong = f"{part.strip()!r} is not SPLIT=NAME."
        elif split not in SPLITS:
            wrong = f"{split!r} is not a split.{suggest(split, SPLITS)}"
        elif found.setdefault(name, split) != split:
            wrong = f"{name!r} stands for two splits."
        if wrong:
            raise ConfigError(f"data.splits {text!r}: {wrong}", "Example: train=a,val=b,test=c.")
    return found


def as_setting(names: Mapping[str, str]) -> str:
    """The `--data.splits` that means the same as name -> split."""
    ordered = sorted(names.items(), key=lambda item: SPLITS.index(item[1]))
    value = ",".join(f"{split}={name}" for name, split in ordered)
    return (
        f"--data.splits {value!r}" if re.search(r"[^\w=,.-]", value) else f"--data.splits {value}"
    )


# -- files that are parts of one data set ----------------------------------------------------------


class Shards(NamedTuple):
    """The split of each file of a data set in several, None where nothing names it; and notes."""

    splits: list[str | None]
    notes: list[str]


def shard_splits(paths: Sequence[str], wanted: Mapping[str, str] | None) -> Shards:
    """The split that the name of each file, or of a folder that only some of them share, speaks of.

    A word beside other words, such as in imagenet-train-00.tar, is a guess: it counts where every
    file has one and train is among them. wanted: `parse_splits`; a key is a file's name, the
    beginning of one, or a folder's. Raises ValueError, in a sentence: names that contradict.
    """
    paths = [path.replace(os.sep, "/") for path in paths]
    common = os.path.commonpath([os.path.dirname(path) or "." for path in paths])
    below = [os.path.relpath(path, common).replace(os.sep, "/").split("/") for path in paths]
    if wanted is not None:
        return _wanted_shards(below, wanted)
    names = [[*parts[:-1], _stem(parts[-1])] for parts in below]
    read = read_names({name for parts in names for name in parts})
    sure, words = [], []
    where: list[str] = []  # the name that speaks of each file's split, as data.splits has it
    for parts, whole in zip(names, below, strict=True):
        found = {part: read[part] for part in parts if part in read}
        splits = {name.split for name in found.values() if not name.rest}
        if len(splits) > 1:
            raise ValueError(f"{'/'.join(parts)!r} names several splits.")
        sure.append(splits.pop() if splits else None)
        words.append(next((name for name in reversed(found.values()) if name.rest), None))
        folders = [part for part in parts[:-1] if part in found and not found[part].rest]
        where.append(folders[0] if folders else _beginning(whole[-1]))
    guessed = {i: w for i, w in enumerate(words) if w is not None and sure[i] is None}
    if not guessed:
        return Shards(sure, _split_notes(below, where, sure))
    named = [w.split if (w := guessed.get(i)) else split for i, split in enumerate(sure)]
    example = {where[i]: w.split for i, w in guessed.items()}
    if None not in named and "train" in named:
        about = ", ".join(f"{name!r} is {split}" for name, split in list(example.items())[:4])
        every = {name: split for name, split in zip(where, named, strict=True) if split}
        note = (
            f"Guessed from words in the names of files: {about}. Fixed by {as_setting(every)}, or "
            "none."
        )
        return Shards(named, [note] if set(named) != {"train"} else [])
    notes = _split_notes(below, where, sure)
    others = {name: split for name, split in example.items() if split != "train"}
    if not others:
        return Shards(sure, notes)
    name, split = next(iter(others.items()))
    note = (
        f"{name!r} is not taken as the {split} split: not every file is named after one, train "
        f"among them. If it is, use {as_setting({name: split})}."
    )
    return Shards(sure, [*notes, note])


def _split_notes(
    below: Sequence[Sequence[str]], where: Sequence[str], splits: Sequence[str | None]
) -> list[str]:
    """Which names make files a split, where there are several, and which name none."""
    if len({split or "train" for split in splits}) < 2:
        return []
    used = {name: split for name, split in zip(where, splits, strict=True) if split}
    others = ["/".join(parts) for parts, split in zip(below, splits, strict=True) if not split]
    about = ", ".join(f"{name!r} is {split}" for name, split in sorted(used.items()))
    note = f"Splits by the names of files: {about}."
    if others:
        few = ", ".join(map(repr, others[:3])) + ", ..." * (len(others) > 3)
        note += f" Trained on, since their names speak of none: {few}."
    return [note + " --data.splits train=NAME,val=NAME decides, or none."]


def _beginning(file: str) -> str:
    """The name of a file without the number of the shard and what follows it."""
    return re.split(r"[-_.]*\d", file)[0] or file


def _stem(name: str) -> str:
    return re.sub(r"\.(tar|tar\.gz|tgz|parquet|arrow)$", "", name, flags=re.IGNORECASE)


def _wanted_shards(below: Sequence[Sequence[str]], wanted: Mapping[str, str]) -> Shards:
    splits: list[str | None] = []
    for parts in below:
        *folders, file = parts
        keys = [k for k in wanted if k in folders or file.startswith(k)]
        splits.append(wanted[max(keys, key=len)] if keys else None)
    if any(splits) and "train" in wanted.values() and None in splits:
        file = "/".join(below[splits.index(None)])
        raise ValueError(f"data.splits names no split of {file!r}.")
    return Shards(splits, [])
