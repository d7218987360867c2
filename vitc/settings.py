"""What values can a setting take? One coercer for JSON, Python and the command line. No torch."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

from vitc.errors import ConfigError, unknown


class Settings(dict[str, Any]):
    """An open table of settings by name, for a class that vitc does not know; never changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted((name, repr(value)) for name, value in self.items())))


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    one_of: tuple[str, ...] = (),
    needs: tuple[str, Any] | None = None,
) -> Any:
    """A field of a config with its default and allowed values; `out_of_bounds` checks them.

    `needs`: another setting of the component and the value, or SOME, with which alone this one has
    an effect; of names joined by " or ", one is enough.
    """
    bounds = (at_least, above, at_most, below)
    metadata = {"bounds": bounds, "one_of": one_of, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


@cache
def _limited(cls: Hashable) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a class that were made by `setting`."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return tuple(f for f in fields if "bounds" in f.metadata)


SOME = object()  # any value but None, 0 and False


def without_effect(config: Any, path: str) -> dict[str, str]:
    """Settings of a component that differ from their defaults and lack what they need, and why."""
    found = {}
    for f in _limited(config.__class__):
        needs = f.metadata["needs"]
        if needs is None or getattr(config, f.name) == f.default:
            continue
        names, wanted = needs[0].split(" or "), needs[1]
        have = [getattr(config, name) for name in names]
        if wanted is SOME and all(value is None or value == 0 for value in have):
            options = " or ".join(f"{path}.{name}" for name in names)
            found[f.name] = f"{path}.{f.name} has no effect without {options}."
        elif wanted is not SOME and have != [wanted]:
            found[f.name] = (
                f"{path}.{f.name} has no effect with {path}.{names[0]} {have[0]!r}; it needs "
                f"--{path}.{names[0]} {wanted}."
            )
    return found


def out_of_bounds(config: Any, path: str) -> list[str]:
    """The settings of a component that are outside their bounds or without effect, a sentence
    each."""
    found = list(without_effect(config, path).values())
    for f in _limited(config.__class__):
        value = getattr(config, f.name)
        if value is None:
            continue
        choices = f.metadata["one_of"]
        if choices and value not in choices:
            found.append(f"{path}.{f.name} {value!r} must be one of {', '.join(choices)}.")
        if choices:
            continue
        at_least, above, at_most, below = f.metadata["bounds"]
        values = value if isinstance(value, tuple) else (value,)
        inside = all(
            (at_least is None or v >= at_least)
            and (above is None or v > above)
            and (at_most is None or v <= at_most)
            and (below is None or v < below)
            for v in values
        )
        if not inside:
            or_none = ", or None" if f.default is None else ""
            found.append(
                f"{path}.{f.name} {value} must {_allowed(*f.metadata['bounds'])}{or_none}."
            )
    return found


def _allowed(
    at_least: float | None, above: float | None, at_most: float | None, below: float | None
) -> str:
    high = at_most if at_most is not None else below
    if at_most is not None and at_most >= 16 and above is None:  # a count, not a share
        least = "not be negative" if at_least == 0 else f"be at least {at_least}"
        return f"{least} and at most {at_most}"
    if high is not None and high != math.inf:
        low = f"[{at_least}" if at_least is not None else f"({above}"
        return f"be in {low}, {high}{']' if at_most is not None else ')'}"
    if above is not None:
        return f"be above {above}"
    return "not be negative" if at_least == 0 else f"be at least {at_least}"


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, or a ConfigError with what is allowed."""
    if type(value) is hint:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        for option in args:
            try:
                return coerce(value, option, where)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in args:
            return value
        allowed = [str(a) for a in args]
        if isinstance(value, str):
            raise unknown(f"value of {where}:", value, allowed)
    elif origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(coerce(v, args[0], where) for v in value)
        if len(args) == len(value):
            return tuple(coerce(v, a, where) for v, a in zip(value, args, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{where} is {value!r}; it must be {type_name(hint)}.")


def type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(a) for a in args)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list of {type_name(args[0])}"
        return f"{len(args)} values"
    names: dict[Any, str] = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(hint, str(hint))


def from_words(words: Sequence[str], hint: Any, where: str) -> Any:
    """The words of a command line as the annotated type. Raises ConfigError."""
    if hint is Settings:  # of a class that vitc does not know: a Python literal, else the text
        text = " ".join(words)
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
        return _literal(text, None)
    if flag_words(hint) and not words:  # the flag alone
        return True
    if not words:
        raise ConfigError(f"{where} has no value; it must be {type_name(hint)}.")
    if hint == tuple[str, ...]:  # names, separated by commas
        names = tuple(name for word in words for name in word.split(",") if name)
        return () if names and is_none(names[0]) else names
    value: Any = [_literal(word, hint) for word in words]
    only_tuple = "tuple" in str(hint) and int not in typing.get_args(hint)
    if len(value) == 1 and (value[0] is None or not only_tuple):
        value = value[0]
    with contextlib.suppress(ConfigError):
        return coerce(value, hint, where)
    given = " ".join(words)
    if typing.get_origin(hint) is typing.Literal:
        return coerce(given, hint, where)
    raise ConfigError(f"{where} is {given!r}; it must be {type_name(hint)}.")


def flag_words(hint: Any) -> tuple[str, ...]:
    """The words that may follow a flag of this type; none: it is no flag."""
    others = typing.get_args(hint)
    if bool not in (hint, *others):
        return ()
    return ("true", "false", *(word for other in others for word in typing.get_args(other)))


def is_none(word: str) -> bool:
    return word.lower() in ("none", "null")


def _literal(word: str, hint: Any) -> Any:
    """A word as the value that it spells, unless its type is a string."""
    if hint is str or typing.get_origin(hint) is typing.Literal:
        return word
    if is_none(word):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def table(old: Mapping[str, Any], group: Mapping[str, Any], where: str) -> Settings:
    """An open table with the values of `group`; "" holds a whole table."""
    whole = group.get("", {})
    if not isinstance(whole, Mapping):
        raise ConfigError(f"{where} is {whole!r}; it must be a table of settings by name.")
    return Settings({**old, **whole, **{name: v for name, v in group.items() if name}})
