"""How do strings, lists, tuples and dicts that an optimizer keeps get into a checkpoint and back?

As JSON, `["list", 1, ["tensor"], ["str", "on"], ["dict", ["key", null]]]`: the sort, then what is
in it; a dict's pairs as a list, since their order is part of it. A tensor is in the file of
tensors, under the name of the whole and its place in it: `<parameter>/Q/0/1`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

PLAIN = (bool, int, float, type(None))
CONTAINERS = (list, tuple, dict)
DEPTH = 8  # containers within each other
TEXT = 1000  # characters of a string
MOST = 2_000_000  # bytes of all that as JSON; indented it stays far below what is read of a file


class Unfit(ValueError):
    """What is wrong with a value, or with its JSON."""


def flattened(value: Any, name: str, keep: Callable[[str, Tensor], None], depth: int = 0) -> Any:
    """A value as JSON; `keep` gets its tensors, by name. Raises Unfit: it cannot be held."""
    if isinstance(value, Tensor):
        keep(name, value)
        return ["tensor"]
    if isinstance(value, float) or type(value) in PLAIN:
        # A float of another library, as numpy's, comes back as Python's, of the same bits.
        return value
    if type(value) is str:
        if len(value) > TEXT:
            raise Unfit(f"str of {len(value)} characters (at most {TEXT})")
        return ["str", value]
    if type(value) not in CONTAINERS:  # a subclass would come back as another type
        raise Unfit(f"{type(value).__name__}{f' within a container ({name})' if depth else ''}")
    if depth == DEPTH:
        raise Unfit(f"containers nested more than {DEPTH} deep")
    parts = [
        flattened(part, f"{name}/{i}", keep, depth + 1)
        for i, part in enumerate(value.values() if type(value) is dict else value)
    ]
    if type(value) is dict:
        if odd := [key for key in value if type(key) is not str or len(key) > TEXT]:
            raise Unfit(f"dict with the key {odd[0]!r:.100}, no short string")
        parts = [[key, part] for key, part in zip(value, parts, strict=True)]
    return [type(value).__name__, *parts]


def rebuilt(made: Any, name: str, take: Callable[[str], Any], depth: int = 0) -> Any:
    """The value that `flattened` made JSON of; `take` gives a tensor by its name.

    Raises Unfit: it has made no such JSON. What it has not made may be a stranger's.
    """
    if type(made) in PLAIN:
        return made
    if type(made) is not list or not made or type(made[0]) is not str:
        raise Unfit("no value")
    sort, *parts = made
    if sort == "tensor" and depth and not parts:
        return take(name)
    if sort == "str" and len(parts) == 1 and type(parts[0]) is str and len(parts[0]) <= TEXT:
        return parts[0]
    if sort not in ("list", "tuple", "dict") or depth == DEPTH:
        raise Unfit("an unknown sort, or nested too deep")
    keys: list[str] = []
    if sort == "dict":
        if not all(type(p) is list and len(p) == 2 and type(p[0]) is str for p in parts):
            raise Unfit("a dict without keys")
        keys, parts = [key for key, _ in parts], [part for _, part in parts]
        if len(set(keys)) != len(keys):
            raise Unfit("a dict with a key twice")
    values = [rebuilt(part, f"{name}/{i}", take, depth + 1) for i, part in enumerate(parts)]
    if sort == "dict":
        return dict(zip(keys, values, strict=True))
    return values if sort == "list" else tuple(values)


def too_much(made: Iterable[Any]) -> bool:
    """Whether the JSON of all values of an optimizer, numbers alone aside, is more than `MOST`."""
    return sum(len(json.dumps(one)) for one in made if type(one) is list) > MOST
