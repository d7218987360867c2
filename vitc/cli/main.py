"""`vitc`: choose a verb, parse its options, run it; errors as messages and exit codes.

Exit codes: 0 success, 1 the run failed or diverged, 2 usage or config, 130 Ctrl-C, 143 SIGTERM
with the state saved. Results go to stdout; progress, notes and errors to stderr. Verbs import
torch only after their options have been checked. A new verb is one file with a `VERB` and one
entry here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitc import __version__
from vitc.cli import (
    bench,
    convert,
    doctor,
    evaluate,
    export,
    plan,
    predict,
    pretrain,
    push,
    report,
    save,
    serve,
    show,
    train,
)
from vitc.cli.completion import completion_script
from vitc.cli.data import DATA_VERBS
from vitc.cli.parser import Verb, emit, emit_json, indented, note, take_settings
from vitc.cli.study import QUICK_VERB, study_verbs
from vitc.config import all_leaf_types
from vitc.errors import (
    ConfigError,
    DivergedError,
    InterruptedRun,
    LostProcess,
    VitcError,
    unknown,
)
from vitc.files import read_json
from vitc.machine import threads_spin_briefly
from vitc.streams import Stream, fill_closed, guarded, use_utf8
from vitc.wording import printable

VERBS: dict[str, Verb] = {
    "train": train.VERB,
    "evaluate": evaluate.VERB,
    "predict": predict.VERB,
    "pretrain": pretrain.VERB,
    "show": show.VERB,
    "report": report.VERB,
    "bench": bench.VERB,
    "plan": plan.VERB,
    "doctor": doctor.VERB,
    "export": export.VERB,
    "serve": serve.VERB,
    "convert": convert.VERB,
    "save": save.VERB,
    "push": push.VERB,
}
ALIASES = {"eval": "evaluate"}
# Verbs that are groups of verbs: their first argument chooses one.
GROUPS: dict[str, Callable[[], dict[str, Verb]]] = {
    "study": study_verbs,
    "data": lambda: DATA_VERBS,
}
# How `vitc --help` lists them.
SECTIONS = {
    "commands": ("train", "pretrain", "evaluate", "predict", "study"),
    "look": ("show", "report", "bench", "plan", "doctor"),
    "data": ("data",),
    "share": ("export", "serve", "save", "push", "convert"),
}
GROUP_SUMMARIES = {
    "study": "Measure how easily models train: quick, hparams, length, optimizer, peak, seeds ...",
    "data": "Check, pack and verify data sets.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: sys.argv) and return its exit code; never exits by itself."""
    if argv is None:
        fill_closed()
        use_utf8()
        threads_spin_briefly()
    words = list(sys.argv[1:] if argv is None else argv)
    with guarded() as (out, _):
        return _run(words, out)


def _run(words: list[str], out: Stream) -> int:
    args = Namespace(verb=None, json="--json" in words, debug="--debug" in words, run_folder=None)
    try:
        code = _dispatch([word for word in words if word != "--debug"], args, out)
        out.flush()
    except BrokenPipeError:  # the reader has gone, as in `vitc show --list | head`
        return 141
    except KeyboardInterrupt:
        return _report(InterruptedRun("Interrupted."), args)
    except Exception as error:
        # Ctrl-C in the middle of an import can come out as that import's failure.
        if not isinstance(error, VitcError) and _has_interrupt(error):
            error = InterruptedRun("Interrupted.")
        if out.lost and isinstance(error, OSError):
            error = VitcError(
                f"The result could not be written to stdout: {out.lost}.",
                "Files that were written are complete. Send stdout where there is room.",
            )
        return _report(error, args)
    return code


def _has_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _dispatch(words: list[str], args: Namespace, out: Stream) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        emit(f"vitc {__version__}")
        return 0
    if words[0] == "--print-completion":
        groups = {name: verbs() for name, verbs in GROUPS.items()}
        emit(completion_script(words[1:], {**VERBS, **groups}))
        return 0
    name, *rest = words
    name = ALIASES.get(name, name)
    if name in GROUPS:
        if not rest or rest[0] in ("-h", "--help"):
            print(_group_help(name), file=sys.stdout if rest else sys.stderr)
            return 0 if rest else 2
        args.verb = name
        verbs = GROUPS[name]()
        if rest[0] not in verbs:
            raise unknown(f"{name} command", rest[0], verbs)
        verb = verbs[rest[0]]
        name, rest = f"{name} {rest[0]}", rest[1:]
    elif name in VERBS:
        verb = VERBS[name]
    else:
        raise unknown("command", name, [*VERBS, *GROUPS])
    args.verb = name
    parser = verb.parser(name)
    args.help_all = "--help-all" in rest and verb.more_help is not None
    helps = ("-h", "--help", "--help-all") if verb.more_help is not None else ("-h", "--help")
    asked = [word for word in rest if word not in helps]
    if asked != rest and (verb.more_help is None or not asked):
        print(parser.format_help(), end="")
        return 0
    args.settings, own = take_settings(asked) if verb.takes_settings else ({}, asked)
    parser.read(own, all_leaf_types() if verb.takes_settings else {}, args)
    if verb.runs and args.trust:
        _trust([getattr(args, name) for name in verb.runs])
    if asked != rest and verb.more_help is not None:
        verb.more_help(parser, args)
        return 0
    out.needed = args.json or not verb.in_files(args)
    return verb.run(args)


def _trust(named: list[Any]) -> None:
    """--trust: allow custom classes that these folders and configs name, and archives, to run."""
    from vitc.plugins import trust

    words = [w for value in named for w in (value if isinstance(value, list) else [value])]
    paths = [Path(w) for w in words if w is not None]
    files = ("config.json", "plan.json", "folds.json")
    paths = [
        p
        for p in paths
        if (p.is_file() and p.suffix in (".json", ".pt2"))
        or any((p / name).is_file() for name in files)
    ]
    trusted = [one for path in paths for one in trust(path)]
    for one in trusted:
        note(f"trusted: {one.source} (SHA-256 {one.sha256[:12]}...)")
    if not trusted:
        note("--trust has no effect: no custom class is named there.")


def _group_help(group: str) -> str:
    verbs = GROUPS[group]()
    width = max(map(len, verbs))
    lines = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items())
    examples = "\n".join(indented(verb.example.splitlines()[0]) for verb in verbs.values())
    return (
        f"{GROUP_SUMMARIES[group]}\n\nusage: vitc {group} COMMAND ...\n\ncommands:\n{lines}\n\n"
        f"examples:\n{examples}\n\nOptions of a command: vitc {group} COMMAND --help"
    )


def _overview() -> str:
    summaries = {name: verb.summary for name, verb in VERBS.items()} | GROUP_SUMMARIES
    width = max(map(len, summaries))
    sections = "\n\n".join(
        f"{title}:\n" + "\n".join(f"  {name:<{width}}  {summaries[name]}" for name in names)
        for title, names in SECTIONS.items()
    )
    firsts = [*(VERBS[n] for n in SECTIONS["commands"] if n in VERBS), QUICK_VERB]
    examples = "\n".join(indented(verb.example.splitlines()[0]) for verb in firsts)
    return (
        "Train Vision Transformers that optimise as easily as CNNs, and measure how easily any "
        f"model trains.\n\nusage: vitc COMMAND ...\n\n{sections}\n\nexamples:\n{examples}\n\n"
        "Options of a command: vitc COMMAND --help. Version: vitc --version\n"
        'Completion in bash or zsh: eval "$(vitc --print-completion bash)" (docs/start.md)'
    )


def _report(error: Exception, args: Namespace) -> int:
    """Print an error to stderr, and under --json to stdout; return its exit code. What another
    process of the run reports is not printed here too."""
    hint, code, status = None, 1, "failed"
    if isinstance(error, VitcError):
        message, hint, code = error.message, error.hint, error.exit_code
        if isinstance(error, InterruptedRun):
            code, status = error.run_exit_code, "interrupted"
        elif isinstance(error, LostProcess):
            status = "interrupted"
        elif isinstance(error, DivergedError):
            status = "diverged"
    elif isinstance(error, OSError) and error.strerror:
        message, hint, code = _about_path(error)
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be imported here
        message = f"Out of device memory: {error}"
        hint = "Lower --train.batch, or add --train.grad_checkpointing."
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        message = f"Out of memory: {str(error).splitlines()[0] if str(error) else 'no more here'}."
        hint = "Use a smaller model, --model.img_size or --train.batch."
    else:
        args.debug = True
        message = f"{type(error).__name__}: {error}"
        hint = "This is a bug in vitc. Please report it with the traceback."
    if args.debug:
        traceback.print_exception(error)
    if isinstance(error, VitcError) and error.elsewhere:
        return code
    label = "" if isinstance(error, InterruptedRun) else "error: "
    lines = [f"{label}{message}", *([hint] if hint else [])]
    if isinstance(error, ConfigError):
        lines.append(f"Try 'vitc {args.verb} --help'." if args.verb else "Try 'vitc --help'.")
    with contextlib.suppress(OSError):  # a closed stderr is no reason for another exit code
        print("\n".join(lines), file=sys.stderr)
        if args.json:
            about = {"status": status, "error": message, "hint": hint}
            emit_json(_last_summary(args, status) | about)
            sys.stdout.flush()
    return code


def _about_path(error: OSError) -> tuple[str, str | None, int]:
    """Message, hint and exit code of what the system answered about a file."""
    name = str(error.filename or "")
    if error.errno == errno.ENAMETOOLONG:
        message = f"The path {printable(name)[:80]}... of {len(name)} characters is too long here."
        return message, "Give a shorter one.", 2
    try:
        os.getcwd()
    except OSError:
        return "The current folder has been removed.", "Change to one that exists: cd DIR", 2
    return f"{name}: {error.strerror}." if name else f"{error.strerror}.", None, 1


def _last_summary(args: Namespace, status: str) -> dict[str, Any]:
    """The summary.json of a run that started and then failed."""
    if args.verb != "train" or args.run_folder is None:
        return {}
    with contextlib.suppress(ConfigError):
        summary = read_json(args.run_folder / "summary.json")
        if summary.get("status") == status:
            return summary
    return {}
