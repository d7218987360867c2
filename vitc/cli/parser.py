"""What do all verbs share? Settings by dotted name, options, printing results and notes.

Settings are named as `load_config` takes them; argparse parses a verb's own options. Every error
is a ConfigError. Free of torch.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from vitc.config import RunConfig, all_leaf_types, leaves, setting_docs
from vitc.errors import ConfigError, suggest
from vitc.settings import Settings, flag_words, from_words, is_none
from vitc.wording import read_duration

# They take one word: a name, or weights to start from.
COMPONENTS = ("model", "data", "optim", "model.stem", "optim.schedule", "init")


# -- dotted settings -----------------------------------------------------------------------------


def take_settings(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Separate settings (`--optim.lr 0.5 --model NAME`, in any place) from a verb's own options.

    Returns the settings by dotted name, converted to their types, and the remaining words.
    Raises ConfigError: an unknown setting, one given twice, or a value of the wrong type.
    """
    types = {**all_leaf_types(), **dict.fromkeys(COMPONENTS, str)}
    settings: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word == "--":
            return settings, [*rest, word, *queue]
        if not word.startswith("--") or not ("." in name or name in types):
            rest.append(word)
            continue
        hint = types.get(name, types.get(name.rpartition(".")[0]))
        if name not in types and hint is not Settings:
            raise unknown_word("setting", f"--{name}", types)
        if name in settings:
            raise ConfigError(f"--{name} is given twice.", "Give it once.")
        values = [value] if equals else [queue.pop(0) for _ in range(_width(hint, queue))]
        settings[name] = from_words(values, hint, f"--{name}")
    return settings, rest


def unknown_word(
    kind: str, word: str, settings: Mapping[str, Any], own: Sequence[str] = ()
) -> ConfigError:
    """The error for an unknown option or setting, with the nearest known name."""
    leaf = word.removeprefix("--").rpartition(".")[2]
    elsewhere = [f"--{name}" for name in settings if name.rpartition(".")[2] == leaf]
    known = [*own, *(f"--{name}" for name in settings)]
    meant = f" Did you mean {elsewhere[0]!r}?" if elsewhere else suggest(word, known)
    return ConfigError(f"Unknown {kind} {word!r}.{meant}")


def _width(hint: Any, following: Sequence[str]) -> int:
    """How many of the following words are the value of a setting of this type."""
    if not following:
        return 0
    if words := flag_words(hint):  # the flag alone means True
        return int(following[0].lower() in words)
    if "tuple" in str(hint) and hint != tuple[str, ...]:  # as many numbers as follow
        count = next((i for i, w in enumerate(following) if not _is_number(w)), len(following))
        return max(count, is_none(following[0]))
    return int(not following[0].startswith("--"))  # names are separated by commas


def _is_number(word: str) -> bool:
    with contextlib.suppress(ValueError):
        float(word)
        return True
    return False


def settings_help(config: RunConfig, names: Sequence[str] | None) -> None:
    """Print settings with their values in `config` and what they mean; None: all of them."""
    about = setting_docs(config)
    for name, value in leaves(config).items():
        if names is None or name in names:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            print(f"  --{name} {shown if value != () else 'none'}")
            print(textwrap.indent(textwrap.fill(about[name], 88), "      "))


# -- a verb's own options --------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError, with a suggestion for a misspelt option."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise ConfigError(message[:1].upper() + message[1:] + ("" if message[-1] in ".?" else "."))

    def read(self, words: Sequence[str], settings: Mapping[str, Any], into: Namespace) -> None:
        """Parse the words into `into`; `settings` are names to suggest for an unknown option."""
        own = [option for action in self._actions for option in action.option_strings]
        for word in words:
            if word == "--":
                break
            if word == "-":  # stdin
                continue
            if word.startswith("-") and word.partition("=")[0] not in own and not _is_number(word):
                raise unknown_word("option", word.partition("=")[0], settings, own)
        self.parse_intermixed_args(words, into)


@dataclass(frozen=True)
class Verb:
    """One command: its help, its options and what it does. `run` returns the exit code."""

    summary: str
    usage: str
    example: str
    options: Callable[[Parser], None]
    run: Callable[[Namespace], int]
    takes_settings: bool = False
    epilog: str = ""
    runs: tuple[str, ...] = ()
    """Arguments that can name folders or configs of others."""
    in_files: Callable[[Namespace], bool] = lambda args: False
    """Whether the result is written to files, so that lost output on stdout does no harm."""
    more_help: Callable[[Parser, Namespace], None] | None = None
    """Printed when arguments accompany --help."""

    def parser(self, name: str) -> Parser:
        parser = Parser(
            prog=f"vitc {name}",
            usage=f"vitc {name} {self.usage}",
            description=f"{self.summary}\n\nexample:\n{indented(self.example)}",
            epilog=self.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.options(parser)
        if self.runs:
            about = "allow custom code (FILE.py:Class) named by these files to run"
            parser.add_argument("--trust", action="store_true", help=about)
        parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
        if self.more_help is not None:
            about = "with a recipe: every setting with its value"
            parser.add_argument("--help-all", action="store_true", help=about)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return parser


def writes_files(args: Namespace) -> bool:
    """For `Verb.in_files`: a verb that only prints under --dry-run."""
    return not getattr(args, "dry_run", False)


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


def number(least: float, most: float) -> Callable[[str], float]:
    """The type of an option: a number within these bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            message = f"{text!r} must be a number from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(message)
        return value

    return read


def device_option(parser: Parser) -> None:
    devices = ("auto", "cuda", "mps", "cpu")
    parser.add_argument("--device", choices=devices, default="auto", help="default: auto")


def changed_data_option(parser: Parser, about: str) -> None:
    """The one option by which every verb admits images that changed since a run began."""
    parser.add_argument("--allow-changed-data", action="store_true", help=about)


def weights_option(parser: Parser) -> None:
    """`--weights ema|raw`; the former spellings `--raw` and `--average` are hidden aliases."""
    add, names = parser.add_argument, ("ema", "raw")
    add(
        "--weights",
        choices=names,
        default="ema",
        help="the moving average (ema, the default) or the last weights (raw) of a run",
    )
    hidden = argparse.SUPPRESS
    add("--raw", dest="weights", action="store_const", const="raw", default=hidden, help=hidden)
    add("--average", dest="weights", choices=names, default=hidden, help=hidden)


def seconds(text: str) -> float:
    """A time with its unit, as `read_duration` reads it."""
    try:
        return read_duration(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from error


# -- results and notes -----------------------------------------------------------------------------


def emit(text: str, file: TextIO | None = None) -> None:
    """Print a line of the result to stdout; under torchrun only the first process does."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file)


def emit_json(values: Mapping[str, Any]) -> None:
    from vitc.files import to_json

    emit(to_json(values))


def note(text: str) -> None:
    """Print progress or advice to stderr."""
    emit(text, sys.stderr)
