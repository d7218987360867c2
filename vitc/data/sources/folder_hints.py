"""What else may be meant by a folder that is refused? Lists, tables and archives in it."""

from __future__ import annotations

import shlex
from pathlib import Path

from vitc.data.sources.tree import LAYOUTS, Tree, join
from vitc.data.split_words import read_names
from vitc.errors import DataError
from vitc.wording import counted

PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_LISTS = (".csv", ".tsv", ".jsonl")
_TABLES = (".parquet", ".arrow", "-ubyte", "-ubyte.gz")


def no_folders(root: Path, tree: Tree) -> DataError:
    """The refusal of a folder without sub-folders."""
    place = tree.places[""]
    images = len(place.images)
    what = f"{counted(images, 'image')} but no sub-folders" if images else "no sub-folders"
    packed = [n for n in place.others if n.lower().endswith(PACKED) and not images]
    hint = f"Unpack {packed[0]!r} first." if packed else lists(root, tree) or LAYOUTS
    return DataError(f"{root} holds {what}: the classes are the sub-folders.", hint)


def data_in(root: Path, tree: Tree) -> str:
    """Names data of another kind in a folder of images, and how it is opened; "" without any."""
    found, shards = tables(root, tree), _files(tree, (".tar",))
    if found or not shards:
        return found or lists(root, tree)
    pattern = root / ("*/*.tar" if "/" in shards[0] else "*.tar")
    return f"Or give the tar files: --data '{pattern}'."


def lists(root: Path, tree: Tree) -> str:
    """Names the list that may hold the labels, those of training first; "" without one."""
    found = sorted(_files(tree, _LISTS), key=_rank)
    if not found:
        return ""
    place = shlex.quote(str(root / found[0]))
    return f"If {found[0]!r} lists images with labels, give it in place of the folder: {place}."


def _rank(path: str) -> int:
    """Lists of training images first, those to be filled in last."""
    name = Path(path).name.lower()
    return 2 if "submission" in name or name.startswith("test") else not name.startswith("train")


def tables(root: Path, tree: Tree) -> str:
    """Names a file of parquet, Arrow or IDX below, and how it is opened; "" without one."""
    for path in sorted(tree.places):
        for name in tree.places[path].others:
            if not name.lower().endswith(_TABLES):
                continue
            splits = read_names([path.rpartition("/")[2]])
            place = root / (path.rpartition("/")[0] if splits else path)
            return f"For the data in {join(path, name)!r}: --data {shlex.quote(str(place))}."
    return ""


def _files(tree: Tree, suffixes: tuple[str, ...]) -> list[str]:
    """The files with these endings at the top or one folder below."""
    return [
        join(path, name)
        for path, place in tree.places.items()
        if "/" not in path
        for name in place.others
        if name.lower().endswith(suffixes)
    ]
