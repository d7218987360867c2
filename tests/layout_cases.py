"""Data sets of random layouts with a known truth, for the fuzz of sources.

Each case is written to a folder: a tree, a tar, a list or a table, with the words, decorations and
litter that people's data have. Its images differ in their bytes, so that each is found again.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.source_folders import png

SPLITS = ("train", "val", "test")
CLASSES = ("cat", "dog", "bird", "Löwe", "golden retriever", "n01440764", "7", "car.v2")
# Names of the three splits that stand together in one data set.
STYLES = (
    ("train", "val", "test"),
    ("Train", "Val", "Test"),
    ("training", "validation", "testing"),
    ("training_set", "validation_set", "test_set"),
    ("seg_train", "seg_val", "seg_test"),
    ("train_images", "val_images", "test_images"),
    ("Train_Set_Folder", "Validation_Set_Folder", "Test_Set_Folder"),
    ("TrainSet", "ValSet", "TestSet"),
    ("trainset", "valset", "testset"),
    ("train-data", "valid-data", "test-data"),
    ("train2017", "val2017", "test2017"),
    ("trn", "dev", "tst"),
    ("train", "eval", "test"),
    ("train", "holdout", "test"),
)
GUESSES = (  # a word in them is a split's: a guess, which is printed
    ("flowers_train", "flowers_val", "flowers_test"),
    ("train-pets", "val-pets", "test-pets"),
)


@dataclass
class Case:
    """truth: number of an image -> its class and split. unused: what the notes have to name.

    clear: nothing in it is ambiguous. readable: false where labels are missing or doubtful, so that
    it has to be refused.
    """

    kind: str
    source: str
    path: Path
    truth: dict[int, tuple[str, str]]
    clear: bool = True
    readable: bool = True
    unused: list[str] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


class Maker:
    """Draws one case after another."""

    def __init__(self, seed: int, root: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.root = root / f"{seed:04d}"
        self.root.mkdir(parents=True)

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def images(self, splits: tuple[str, ...]) -> dict[int, tuple[str, str]]:
        """Image -> class and split; every class has some in every split."""
        count = int(self.rng.integers(2, 4))
        classes = [str(c) for c in self.rng.choice(CLASSES, count, replace=False)]
        truth: dict[int, tuple[str, str]] = {}
        for split in splits:
            for name in classes:
                for _ in range(int(self.rng.integers(2, 4))):
                    truth[len(truth)] = name, split
        return truth

    def some_splits(self) -> tuple[str, ...]:
        return self.pick([SPLITS, ("train", "val"), ("train", "test")])

    def leaf(self, number: int) -> str:
        """A file's name; some have dots and spaces."""
        return self.pick([f"{number:04d}.png", f"img {number}.PNG", f"v 2.{number}.png"])


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


# -- trees -----------------------------------------------------------------------------------------


def tree_files(m: Maker, case: Case, litter: bool) -> dict[str, bytes]:
    """The files of a tree of classes, or of splits and classes in either order."""
    form = m.pick(["classes", "classes", "splits", "splits", "below"])
    splits = m.some_splits() if form != "classes" else ("train",)
    guess = form == "splits" and m.chance(0.15)
    style = dict(zip(SPLITS, m.pick(GUESSES if guess else STYLES), strict=True))
    if form == "splits" and m.chance(0.15):  # words that mean nothing without the setting
        style = {"train": "north", "val": "east side", "test": "south"}
        case.settings = {"splits": ",".join(f"{s}={style[s]}" for s in splits)}
    case.truth = m.images(splits)
    case.about += [form, *style.values()]
    twice = form == "splits" and m.chance(0.2)  # seg_train/seg_train/cat
    prefix = m.pick(["", "", "", "photos/", "archive/photos/"])
    files = {}
    for number, (label, split) in case.truth.items():
        nested = m.pick(["", "", "2023/", "a/b/"])
        folder = {
            "classes": f"{label}/{nested}",
            "splits": f"{style[split]}/" * (2 if twice else 1) + f"{label}/{nested}",
            "below": f"{label}/{style[split]}/",
        }[form]
        files[f"{prefix}{folder}{m.leaf(number)}"] = png(number)
    if form == "classes":
        trap = m.pick(["", "", "train", "test", "dev"])  # a class with the name of a split
        if trap:
            case.about.append(f"class {trap}")
            inner = m.pick(["", "freight/"]) if trap == "train" else ""
            case.clear = trap == "train" and not inner
            if m.chance(0.5):
                case.clear, case.settings = True, {"splits": "none"}
            for _ in range(3):
                number = len(case.truth)
                case.truth[number] = trap, "train"
                files[f"{prefix}{trap}/{inner}{number}.png"] = png(number)
    if form == "splits" and m.chance(0.2):
        files[f"{prefix}extra/other/900.png"] = png(900)
        case.unused.append("extra")
    if litter:
        more, unused = noise(m, prefix, next(iter(files)).rpartition("/")[0])
        files |= more
        case.unused += unused
    return files


def noise(m: Maker, prefix: str, folder: str) -> tuple[dict[str, bytes], list[str]]:
    """What is no data: file managers' litter, text, own output, another program's config.

    Also the names that have to be reported: of all but the litter.
    """
    run = {
        "config.json": json.dumps({"model": {}, "data": {}, "optim": {}, "train": {}}).encode(),
        "metrics.jsonl": b"",
        "curves.png": png(901),
        "checkpoints/latest": b"step_1",
    }
    options = [
        ({f"{folder}/@eaDir/x.png/THUMB.png": png(902), "__MACOSX/._a.png": b"x"}, []),
        ({f"{folder}/._a.png": b"x", f"{prefix}.DS_Store": b"x", f"{folder}/Thumbs.db": b"x"}, []),
        ({f"{folder}/notes.md": b"x"}, ["notes.md"]),
        ({f"{folder}/config.json": b'{"name": "export", "version": 3}'}, ["config.json"]),
        ({f"{prefix}config.json": b'{"name": "export", "version": 3}'}, []),
        ({f"{prefix}runs/a/{name}": content for name, content in run.items()}, ["runs"]),
        ({f"{folder}/run1/{name}": content for name, content in run.items()}, ["run1"]),
    ]
    files, unused = m.pick(options)
    more, others = m.pick(options[:4])
    return files | more, unused + others


def make_tree(m: Maker) -> Case:
    case = Case("tree", "folder", m.root / "set", {})
    put(case.path, tree_files(m, case, litter=m.chance(0.6)))
    return case


WORDS = (
    *("train", "val", "test", "Training", "dev", "test_set", "train_cats", "eval", "train2"),
    *("cat", "dog", "a", "b", "extra", "images", "masks", "part1", "part2", "New folder", "runs"),
)


def random_tree(seed: int, root: Path) -> list[str]:
    """Folders of any names with images anywhere; the paths of the images."""
    rng = np.random.default_rng(seed)
    found: list[str] = []

    def fill(path: str, depth: int) -> None:
        if rng.random() < (0.15, 0.5, 0.85, 1)[depth]:
            found.extend(f"{path}{i}.png" for i in range(int(rng.integers(1, 3))))
        if depth < 3 and rng.random() < (1, 0.6, 0.3)[depth]:
            for word in rng.choice(WORDS, int(rng.integers(1, 4)), replace=False):
                fill(f"{path}{word}/", depth + 1)

    fill("", 0)
    root.mkdir(parents=True)
    put(root, {name: png(i) for i, name in enumerate(found)})
    return found


# -- tars ------------------------------------------------------------------------------------------


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as f:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))


def sidecar(m: Maker, form: str, label: str) -> tuple[str, bytes]:
    if form == "cls":
        return ".cls", f"{label}{m.pick(['', chr(10)])}".encode()
    if form == "txt":
        return ".txt", label.encode()
    key = m.pick(["label", "Label", "class", "class_name", "category"])
    return ".json", json.dumps({"width": 4, key: label}).encode()


def make_tar(m: Maker) -> Case:
    case = Case("tar", "tar", m.root / "set.tar", {})
    if m.chance(0.35):
        members = tree_files(m, case, litter=False)
        write_tar(case.path, {m.pick(["", "./"]) + name: c for name, c in members.items()})
        return case
    form = m.pick(["cls", "json", "cls", "json", "txt"])
    divided = m.pick(["none", "folders", "shards", "trap"])
    splits = m.some_splits() if divided in ("folders", "shards") else ("train",)
    case.truth = m.images(splits)
    style = dict(zip(SPLITS, m.pick(STYLES[:-2]), strict=True))
    part = m.pick(["", "", "resized", "rgb.small"])
    if divided == "trap":
        case.unused.append("dev-board-photos")
    case.about += [form, divided, part]
    shards: dict[str, dict[str, bytes]] = {}
    for number, (label, split) in case.truth.items():
        folder = "" if form == "txt" else m.pick(["", f"batch{number // 3}/"])
        shard = "part-000"
        if divided == "folders":
            folder = f"{style[split]}/{folder}" if form != "txt" else folder
        if divided == "shards" or (divided == "folders" and form == "txt"):
            shard = m.pick([f"{style[split]}-000", f"flowers-{split}-000"][:1])
        if divided == "trap":
            shard = ("dev-board-photos-0", "phone-photos-0")[number % 2]
        key = f"{folder}img{number:03d}" + (f".{part}" if part else "")
        suffix, content = sidecar(m, form, label)
        shards.setdefault(shard, {})
        shards[shard] |= {f"{key}.png": png(number), f"{key}{suffix}": content}
    if divided != "trap" and len(shards) == 1 and m.chance(0.15):  # one image without its label
        (members,) = shards.values()
        members["img999.png"] = png(999)
        case.readable = False
        case.about.append("one unlabelled")
    case.path = m.root / "set"
    for shard, members in shards.items():
        write_tar(case.path / f"{shard}.tar", members)
    return case


# -- lists and tables ------------------------------------------------------------------------------


@dataclass
class Rows:
    """A table: its header, a row for each image, and what it has beside paths and labels."""

    header: list[str]
    rows: list[list[Any]]


def split_column(m: Maker, case: Case) -> tuple[list[str], list[list[Any]]]:
    """Columns for the splits of the truth: of words, of flags, of numbers with a setting, none."""
    form = m.pick(["word", "word", "flags", "setting", "guess", "fold", "none"])
    splits = SPLITS if form in ("word", "flags", "setting", "guess") else ("train",)
    if form == "flags":
        splits = m.pick([("train", "val"), SPLITS])
    case.truth = m.images(splits)
    case.about.append(form)
    case.unused += ["fold"] if form == "fold" else []
    of = [split for _, split in case.truth.values()]
    if form == "word":
        words = dict(zip(SPLITS, m.pick(STYLES[:4] + STYLES[-3:]), strict=True))
        name = m.pick(["split", "Split", "SET", "subset", "Partition", "data_split", "Usage"])
        return [name], [[words[s]] for s in of]
    if form == "flags":
        true, false = m.pick([("True", "False"), ("1", "0"), ("yes", "no")])
        names = {"val": m.pick(["is_valid", "is_val", "IsValid"]), "test": "is_test"}
        names = {s: n for s, n in names.items() if s in splits}
        return list(names.values()), [[true if s == t else false for t in names] for s in of]
    if form == "guess":
        return ["purpose"], [[s] for s in of]
    if form == "setting":
        case.settings = {"split_column": "phase", "splits": "train=0,val=1,test=2"}
        return ["phase"], [[str(SPLITS.index(s))] for s in of]
    if form == "fold":
        return ["fold"], [[str(i % 4)] for i in range(len(of))]
    return [], [[] for _ in of]


def table(m: Maker, case: Case, image: str) -> Rows:
    """Columns in any order: image numbers, labels, splits and others."""
    names, values = split_column(m, case)
    label = m.pick(["label", "Label", "class", "category", "target", "class_name"])
    header = [image, label, *names]
    rows = [
        [number, name, *value]
        for (number, (name, _)), value in zip(case.truth.items(), values, strict=True)
    ]
    if m.chance(0.5):
        header.append(m.pick(["photographer", "date", "width", "comment"]))
        case.unused.append(header[-1])
        for i, row in enumerate(rows):
            row.append(m.pick(["Ann, B.", "x;y", f"p{i}", ""]))
    if m.chance(0.1):
        second = m.pick(["label", "class", "target"])
        if second != label.lower():
            case.clear, case.readable = False, False  # two that can be the label
            case.about.append("two labels")
            header.append(second)
            for i, row in enumerate(rows):
                row.append("xy"[i % 2])
    order = m.rng.permutation(len(header)).tolist()
    return Rows([header[i] for i in order], [[row[i] for i in order] for row in rows])


def make_list(m: Maker) -> Case:
    case = Case("list", "list", m.root / "labels.csv", {})
    image = m.pick(["path", "Path", "filename", "file_name", "image", "Image_Path", "image_id"])
    made = table(m, case, image)
    if m.chance(0.1):
        case.path = m.root / "labels.jsonl"
        at = made.header.index(image)
        lines = []
        for row in made.rows:
            row[at] = f"in/{row[at]}.png"
            lines.append(json.dumps(dict(zip(made.header, row, strict=True))))
        case.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        put(m.root, {f"in/{number}.png": png(number) for number in case.truth})
        return case
    delimiter = m.pick([",", ",", ";", "\t", "|"])
    encoding = m.pick(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    ends = m.pick(["\n", "\r\n"])
    slash = m.pick(["/", "/", "\\"])
    absolute = slash == "/" and m.chance(0.2)
    case.about += [repr(delimiter), encoding, repr(ends), slash]
    at = made.header.index(image)
    for row in made.rows:
        path = f"in{slash}sub{slash}{row[at]}.png"
        row[at] = f"{m.root}/{path}" if absolute else path
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ends)
    writer.writerows([made.header, *made.rows])
    blank = m.pick(["", "", ends, f"sep={delimiter}{ends}"])
    case.path = m.root / f"labels.{m.pick(['csv', 'csv', 'txt', 'tsv'])}"
    case.path.write_bytes((blank + text.getvalue()).encode(encoding))
    put(m.root, {f"in/sub/{number}.png": png(number) for number in case.truth})
    return case


def make_table(m: Maker) -> Case:
    """A parquet file, a folder of shards, or what `datasets` saves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    case = Case("table", "parquet", m.root / "set.parquet", {})
    if m.chance(0.4):
        style = dict(zip(SPLITS, m.pick(STYLES[:-2]), strict=True))
        case.truth = m.images(m.some_splits())
        form = m.pick(["hub", "folders"])
        case.about += [form, *style.values()]
        case.path = m.root / "set"
        for split in {s for _, s in case.truth.values()}:
            numbers = [n for n, (_, s) in case.truth.items() if s == split]
            made = pa.table(
                {
                    "image": pa.array([png(n) for n in numbers], pa.binary()),
                    "label": [case.truth[n][0] for n in numbers],
                }
            )
            name = f"data/{style[split]}-00000-of-00001.parquet"
            file = case.path / (name if form == "hub" else f"{style[split]}/0000.parquet")
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(made, file)
        return case
    made = table(m, case, "image")
    at = made.header.index("image")
    columns: dict[str, Any] = {}
    for i, name in enumerate(made.header):
        values = [row[i] for row in made.rows]
        flags = name.lower().startswith("is")
        columns[name] = (
            pa.array([png(v) for v in values], pa.binary())
            if i == at
            else [v in ("True", "1", "yes") for v in values]
            if flags
            else values
        )
    pq.write_table(pa.table(columns), case.path)
    return case


MAKERS: dict[str, Callable[[Maker], Case]] = {
    "tree": make_tree,
    "tar": make_tar,
    "list": make_list,
    "table": make_table,
}
