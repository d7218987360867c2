"""What completes a command line in bash or zsh? A script that shtab makes from the parsers."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitc.cli.parser import COMPONENTS, Verb
from vitc.config import all_leaf_types
from vitc.errors import ConfigError
from vitc.machine import check_installed

SHELLS = ("bash", "zsh")


def completion_script(words: Sequence[str], verbs: Mapping[str, Any]) -> str:
    """The script for the shell that the words name. `verbs`: a Verb, or the verbs of a group.

    Raises ConfigError: another shell, or shtab is missing.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        given = " ".join(words) or "nothing"
        raise ConfigError(f"--print-completion needs {' or '.join(SHELLS)}, not {given}.")
    check_installed("--print-completion", "completion", "shtab")
    import shtab

    parser = ArgumentParser("vitc")
    parser.add_argument("--print-completion", choices=SHELLS, help="print this script")
    _add(parser, verbs, shtab.FILE)
    return str(shtab.complete(parser, words[0]))


def _add(parser: ArgumentParser, verbs: Mapping[str, Any], files: object) -> None:
    """Commands with their options and settings; `files`: what completes an argument by files."""
    commands = parser.add_subparsers()
    for name, verb in verbs.items():
        if not isinstance(verb, Verb):
            _add(commands.add_parser(name, help=f"{name} ..."), verb, files)
            continue
        own = verb.parser(name)
        command = commands.add_parser(name, parents=[own], add_help=False, help=verb.summary)
        settings = (*COMPONENTS, *all_leaf_types()) if verb.takes_settings else ()
        for setting in settings:
            command.add_argument(f"--{setting}")
        for action in own._actions:
            if action.type is Path or not (action.option_strings or action.choices):
                action.complete = files  # type: ignore[attr-defined]
