"""How the words of a command line are read and results are said: what every verb shares.

Settings are typed by tyro and named as `load_config` takes them; a verb's own options are read by
argparse. Every complaint is a ConfigError. Free of torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from vitc.config import RunConfig, all_leaf_types, type_name
from vitc.errors import ConfigError, suggest

COMPONENTS = (
    "model",
    "data",
    "optim",
    "model.stem",
    "init",
)  # take one word


# -- settings: typed and dotted words --------------------------------------------------------------


def take_settings(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Part `--optim.lr 0.5 --model NAME` from a verb's own words; wherever they stand.

    Returns the settings, typed, by their dotted names as `load_config` takes them, and the rest.
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
        if name not in types:
            raise unknown_word("setting", f"--{name}", types)
        if name in settings:
            raise ConfigError(f"--{name} is given twice.", "Give it once.")
        values = [value] if equals else [queue.pop(0) for _ in range(_width(types[name], queue))]
        settings[name] = _typed(name, types[name], values)
    return settings, rest


def unknown_word(
    kind: str, word: str, settings: Mapping[str, Any], own: Sequence[str] = ()
) -> ConfigError:
    """An unknown option or setting: where else that name stands, or what is spelt like it."""
    leaf = word.removeprefix("--").rpartition(".")[2]
    elsewhere = [f"--{name}" for name in settings if name.rpartition(".")[2] == leaf]
    known = [*own, *(f"--{name}" for name in settings)]
    meant = f" Did you mean {elsewhere[0]!r}?" if elsewhere else suggest(word, known)
    return ConfigError(f"Unknown {kind} {word!r}.{meant}")


def _width(hint: Any, following: Sequence[str]) -> int:
    """How many of the following words are the value of a setting of this type."""
    if hint is bool:  # the word alone switches it on
        return int(bool(following) and following[0].lower() in ("true", "false"))
    if hint == tuple[str, ...]:  # names, apart from each other by commas: one word
        return int(bool(following) and not following[0].startswith("--"))
    if "tuple" in str(hint):  # as many as are numbers: no recipe or folder in the way is taken
        count = next((i for i, w in enumerate(following) if not _is_number(w)), len(following))
        return max(count, _is_none(following))
    return int(bool(following) and not following[0].startswith("--"))


def _is_number(word: str) -> bool:
    with contextlib.suppress(ValueError):
        float(word)
        return True
    return False


def _is_none(words: Sequence[str]) -> int:
    return int(bool(words) and words[0].lower() in ("none", "null"))


def _typed(name: str, hint: Any, words: list[str]) -> Any:
    """The words as a value of the annotated type, by tyro's rules; JSON's spellings work too."""
    import tyro

    if hint is bool:
        words = [w.capitalize() for w in words] or ["True"]
    elif hint == tuple[str, ...]:
        names = [name for word in words for name in word.split(",") if name]
        return () if _is_none(names) else tuple(names)
    elif type(None) in get_args(hint) and _is_none(words):
        return None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(hint, args=words, console_outputs=False)
    except SystemExit:
        given = " ".join(words)
        what = f"is {given!r}" if words else "has no value"
        raise ConfigError(f"--{name} {what}; it must be {type_name(hint)}.") from None


def settings_help(config: RunConfig, prog: str) -> None:
    """Print every setting with its meaning and its value in `config`."""
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(
            tyro.conf.AvoidSubcommands[tyro.conf.FlagConversionOff[RunConfig]],
            default=config,
            args=["--help"],
            use_underscores=True,
            prog=prog,
            description=f"Settings of {config.name}, with their values now as defaults.",
        )


# -- one verb's own words --------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose every complaint is a ConfigError, with a suggestion for a misspelt option."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise ConfigError(message[:1].upper() + message[1:] + ("" if message[-1] in ".?" else "."))

    def read(self, words: Sequence[str], settings: Mapping[str, Any], into: Namespace) -> None:
        """The words as values of `into`; `settings` are names to suggest for an unknown option."""
        own = [option for action in self._actions for option in action.option_strings]
        for word in words:
            if word == "--":
                break
            if word.startswith("-") and word.partition("=")[0] not in own and not _is_number(word):
                raise unknown_word("option", word.partition("=")[0], settings, own)
        self.parse_intermixed_args(words, into)


@dataclass(frozen=True)
class Verb:
    """One command: what its help says, its options, and what it does. `run` returns a code."""

    summary: str
    usage: str
    example: str
    options: Callable[[Parser], None]
    run: Callable[[Namespace], int]
    takes_settings: bool = False
    epilog: str = ""
    runs: tuple[str, ...] = ()  # its words that can be folders or configs from somebody else
    more_help: Callable[[Parser, Namespace], None] | None = None  # when words stand beside --help

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
            about = "run the code that it names: a stem or source of images in another's file"
            parser.add_argument("--trust", action="store_true", help=about)
        parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return parser


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def weights_option(parser: Parser) -> None:
    """`--weights ema|raw`; the former spellings `--raw` and `--average` work and are not shown."""
    add, names = parser.add_argument, ("ema", "raw")
    add(
        "--weights",
        choices=names,
        default="ema",
        help="of a run: their moving average (ema, the default) or the last ones (raw)",
    )
    hidden = argparse.SUPPRESS
    add("--raw", dest="weights", action="store_const", const="raw", default=hidden, help=hidden)
    add("--average", dest="weights", choices=names, default=hidden, help=hidden)


def seconds(text: str) -> float:
    """`90s`, `30m`, `2h`, `1h30m` in seconds; a unit is required."""
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    total = 0.0
    if parts is not None:
        units = zip(parts.groups(), (3600, 60, 1), strict=True)
        total = sum(float(number) * unit for number, unit in units if number)
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a time such as 90s, 30m or 1h30m")
    return total


# -- results and notes -----------------------------------------------------------------------------


def first_process() -> bool:
    """Under torchrun one process speaks."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if first_process():
        print(text)


def say_json(values: Mapping[str, Any]) -> None:
    from vitc.runs.folder import to_json

    say(to_json(values))


def note(text: str) -> None:
    if first_process():
        print(text, file=sys.stderr)
