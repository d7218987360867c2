"""What is a contender that a notebook names or passes? Its settings, apart from everybody's.

A model, stem, optimizer or schedule: by its name, as FILE.py:Class, or as the class or function
itself; or settings of its own, of which each may be such a class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitc.config import CUSTOM_PARTS
from vitc.errors import ConfigError
from vitc.models.stem_config import STEM_KINDS
from vitc.optim.optimizers import OPTIMIZERS
from vitc.optim.schedule import SCHEDULES
from vitc.plugins.consent import name_class
from vitc.plugins.load import load
from vitc.plugins.names import MODEL
from vitc.plugins.written import named

NAMED: dict[str, Mapping[str, Any]] = {
    "optim": OPTIMIZERS,
    "optim.schedule": SCHEDULES,
    "model.stem": STEM_KINDS,
}


def settings_of(
    contenders: Mapping[str, Any] | Sequence[str], folder: Path
) -> dict[str, dict[str, Any]]:
    """Each contender's own settings. What a notebook defined is written into the study `folder`.

    Words are NAME=VALUE, or a value that is its own name. Raises ConfigError: it is none of what
    can be compared, or has no source.
    """
    if not isinstance(contenders, Mapping):
        pairs = [_pair(word) for word in contenders]
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"Two contenders are called {twice[0]}.", "Name them: NAME=VALUE.")
        contenders = dict(pairs)
    return {str(name): _settings(value, folder) for name, value in contenders.items()}


def _pair(word: str) -> tuple[str, str]:
    """A word of a command line as a contender's name and value; a class is called by its name."""
    name, sign, value = word.partition("=")
    if sign and value and "(" not in name and ":" not in name:
        return name, value
    library = word.startswith(("timm:", "torchvision:"))
    return (word if library else word.rpartition(":")[2]), word


def _settings(value: Any, folder: Path) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            name: named(inner, folder) if name in CUSTOM_PARTS and callable(inner) else inner
            for name, inner in value.items()
        }
    if isinstance(value, str):
        kinds = [part for part, known in NAMED.items() if value in known and value != "custom"]
        if kinds or ":" not in value or value.startswith(("timm:", "torchvision:")):
            return {kinds[0] if kinds else "model": value}
        custom, _, _ = load(name_class(MODEL, value))
        return {_part(custom): value}
    return {_part(value): named(value, folder)}


def _part(thing: Any) -> str:
    """The part of a config that a class or function is: by its base class, else its arguments."""
    from torch import nn
    from torch.optim import Optimizer

    thing = thing.func if isinstance(thing, functools.partial) else thing
    if isinstance(thing, nn.Module):
        raise ConfigError(
            f"A built {type(thing).__name__} is no contender: every trial starts from fresh "
            "weights.",
            "Give its class, or a function that builds it: def make(num_classes): ...",
        )
    if not callable(thing):
        raise ConfigError(
            f"{thing!r} is no contender.",
            "Give a name, a class or function, or a table of settings.",
        )
    try:
        takes = set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        takes = set()
    if isinstance(thing, type) and issubclass(thing, Optimizer):
        return "optim"
    if hasattr(thing, "lr") or "total_steps" in takes:
        return "optim.schedule"
    if "embed_dim" in takes and "num_classes" not in takes:
        return "model.stem"
    return "optim" if "params" in takes else "model"
