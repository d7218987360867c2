"""The command line: words in any order, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vitc.deploy.evaluation
import vitc.training.loop
from vitc.cli.main import GROUPS, VERBS, main
from vitc.cli.parser import seconds, take_settings
from vitc.cli.train import COMMON_SETTINGS
from vitc.config import RunConfig, differences, to_dict
from vitc.deploy.evaluation import Evaluation
from vitc.errors import (
    BrokenFileError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRun,
    RunError,
)
from vitc.recipes import RECIPES
from vitc.resolve import load_config
from vitc.training.loop import RunResult
from vitc.training.pace import CLOCKS
from vitc.views.model import Table, Text
from vitc.views.text import write

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]


class Runs:
    """Stands in for the loop: remembers what it was asked, and returns or raises as told."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.outs: list[Path] = []
        self.settings: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.summary: dict[str, Any] = {"status": "done", "top1": 50.0}

    def __call__(self, config: RunConfig, out: Path, **settings: Any) -> RunResult:
        self.configs.append(config.checked())
        self.outs.append(out)
        self.settings.append(settings)
        if self.error is not None:
            raise self.error
        return RunResult(out, "done", 50.0, self.summary)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr(vitc.training.loop, "run", stand_in)
    return stand_in


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A run folder as far as `show` reads it."""
    run = tmp_path / "finished"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(load_config("debug"))))
    (run / "data.json").write_text(json.dumps({"classes": ["a", "b"]}))
    (run / "summary.json").write_text(json.dumps({"status": "done", "top1": 61.25, "step": 20}))
    lines = [
        {"kind": "train", "step": 10, "epoch": 0.5, "loss": 2.0, "lr": 0.1},
        {
            "kind": "eval",
            "step": 20,
            "epoch": 1,
            "top1": 61.25,
            "top1_raw": 60.0,
            "top5": 99.0,
            "loss": 1.5,
        },
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def failed(words: str | list[str], capsys: Capture, code: int = 2) -> str:
    """What a command that ends with `code` prints on stderr: a message, no traceback."""
    assert main(shlex.split(words) if isinstance(words, str) else words) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return printed.err


def shown(capsys: Capture, *words: str) -> str:
    """What a command that succeeds prints on stdout."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


# -- help ------------------------------------------------------------------------------------------


def test_help_names_every_command_and_where_its_options_are(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr()
    assert all(verb.summary in shown.out for verb in VERBS.values())
    assert "vitc COMMAND --help" in shown.out
    assert shown.err == ""
    assert "commands:" in failed([], capsys)


def test_a_commands_help_is_short_with_a_summary_and_an_example(capsys: Capture) -> None:
    groups = {f"{g} {n}": verb for g, verbs in GROUPS.items() for n, verb in verbs().items()}
    for name, verb in (VERBS | groups).items():
        assert main([*name.split(), "--help"]) == 0
        out = capsys.readouterr().out
        assert all(line in out for line in (verb.summary, *verb.example.split("\n"))), name
        assert len(re.findall(r"^  (?:-\w, )?--\S+", out, flags=re.M)) <= 25, name


def test_the_examples_of_train_can_be_pasted(runs: Runs) -> None:
    examples = [e for e in VERBS["train"].example.splitlines() if "~" not in e]
    assert [main(shlex.split(line)[1:]) for line in examples] == [0] * len(examples)
    assert runs.configs[1].optim.lr == 0.1


def test_help_of_a_recipe_lists_settings_with_their_values(capsys: Capture) -> None:
    assert main(shlex.split("train fashion_vit_c --optim sgd --help-all --optim.lr 0.77")) == 0
    out = capsys.readouterr().out
    assert "--optim.betas" not in out
    for setting in ("--optim.momentum 0.9", "--optim.lr 0.77", "--train.save_every_seconds"):
        assert setting in out
    assert main(["train", "imagenet_vit_c_4gf", "--help"]) == 0  # its images are not at hand
    out = capsys.readouterr().out
    listed = re.findall(r"^  --([a-z_]+\.[a-z_.]+) ", out, flags=re.M)
    assert set(listed) - {"model.stem"} == set(COMMON_SETTINGS)
    assert "--help-all" in out


def test_help_and_mistakes_come_without_torch() -> None:
    good = ["--help", "train --help", "train debug --help", "show --list", "--version"]
    wrong = [
        "train --optim.lrr 1",
        "train debug --optim.lr abc",
        "predict nowhere x.jpg",
        "train",
        "tarin",
        "eval",
        "train debug --train.batch 0",
    ]
    code = (
        "import sys, shlex; from vitc.cli.main import main\n"
        f"codes = [main(shlex.split(c)) for c in {good + wrong}]\n"
        "assert 'torch' not in sys.modules\n"
        f"assert codes == {[0] * len(good) + [2] * len(wrong)}, codes"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_module_can_be_run_and_passes_the_exit_code_on() -> None:
    command = [sys.executable, "-m", "vitc", "tarin"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr


# -- settings: typed, dotted, in any order ---------------------------------------------------------


def test_words_mean_the_same_in_any_order(runs: Runs) -> None:
    groups = ["debug", "--optim sgd", "--optim.lr 0.5", "--model.stem conv", "--out x"]
    for order in itertools.islice(itertools.permutations(groups), 0, None, 5):
        assert main(["train", *shlex.split(" ".join(order))]) == 0
    assert len(set(map(str, runs.configs))) == 1
    assert runs.configs[0].optim.lr == 0.5
    assert set(runs.outs) == {Path("x")}


def test_settings_before_the_recipe_do_not_swallow_it(runs: Runs) -> None:
    words = "train --data.mean .5 .5 .5 --data.std 1 1 1 --train.compile debug --model.img_size 32"
    assert main(shlex.split(f"{words} --train.seed_init None")) == 0
    config = runs.configs[0]
    assert (config.name, config.train.compile) == (RECIPES["debug"]().name, True)
    assert config.data.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--optim.lr 1e-3", "optim.lr", 1e-3),
        ("--optim.lr=1e-3", "optim.lr", 1e-3),
        ("--optim.lr -1e-3", "optim.lr", -1e-3),
        ("--train.epochs 7", "train.epochs", 7),
        ("--train.save-every-steps 7", "train.save_every_steps", 7),
        ("--train.save_every_steps none", "train.save_every_steps", None),
        ("--train.compile", "train.compile", True),
        ("--train.compile false", "train.compile", False),
        ("--train.compile auto", "train.compile", "auto"),
        ("--model.img_size 32", "model.img_size", 32),
        ("--model.img_size 32 64", "model.img_size", (32, 64)),
        ("--model.stem.channels 8 16 32", "model.stem.channels", (8, 16, 32)),
        ("--data.group None", "data.group", None),
        ("--data.group a+", "data.group", "a+"),
        ("--data.fit pad", "data.fit", "pad"),
        ("--data.augment.scale 0.2 1", "data.augment.scale", (0.2, 1.0)),
        ("--model vit_c_tiny", "model", "vit_c_tiny"),
    ],
)
def test_a_settings_words_become_its_type(words: str, name: str, value: Any) -> None:
    settings, rest = take_settings(shlex.split(f"before {words} --json after"))
    assert settings == {name: value}
    assert type(settings[name]) is type(value)
    assert rest == ["before", "--json", "after"]


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("--optim.lrr 1", ["'--optim.lrr'", "Did you mean '--optim.lr'?"]),
        ("--epochs 5", ["'--epochs'", "Did you mean '--train.epochs'?"]),
        ("--jsn", ["'--jsn'", "Did you mean '--json'?"]),
        ("--zzz", ["Unknown option '--zzz'."]),
        ("--optim.lr abc", ["--optim.lr is 'abc'", "a number"]),
        ("--optim.lr", ["--optim.lr has no value", "a number"]),
        ("--optim.lr --overwrite", ["--optim.lr has no value"]),
        ("--train.epochs 1.5", ["--train.epochs is '1.5'", "an integer"]),
        ("--data.fit corp", ["--data.fit: 'corp'", "Did you mean 'crop'?", "crop, pad, squash"]),
        ("--model.img_size 1 2 3", ["--model.img_size is '1 2 3'", "an integer or 2 values"]),
        ("--train.seed 1 --train.seed 2", ["--train.seed is given twice"]),
        ("--optim adan", ["'adan'", "Did you mean 'adamw'?"]),
        ("--train.batch 0", ["train.batch 0 must be at least 1"]),
        ("--budget 30m", ["--budget has no effect", "--train.epochs"]),
        ("--budget 30", ["--budget: '30' must be a time such as 90s"]),
        ("stray", ["stray"]),
        ("tarin debug", ["'tarin'", "Did you mean 'train'?", "Try 'vitc --help'."]),
        ("train", ["Nothing to train", "vitc train fashion_vit_c"]),
        ("train debugg", ["'debugg'", "Did you mean 'debug'?"]),
        ("train no/where", ["no/where", "There is no recipe"]),
        ("predict run", ["required: PATH"]),
        ("predict run a.jpg --topk 0", ["--topk: '0' must be an integer of at least 1"]),
        ("eval run --split tset", ["--split", "'tset'", "val"]),
        ("show", ["Nothing to show"]),
        ("show --list debug", ["Nothing to show"]),
        ("show vit_c_4fg", ["Did you mean 'vit_c_4gf'?", "vitc show --list"]),
        ("show vit_c_4gf --train.epochs 3", ["--train.epochs has no effect with a model"]),
        ("show vit_c_4gf --plot x.png", ["--plot has no effect with a model"]),
        ("show debug --plot x.doc", ["x.doc", "png"]),
        ("show debug --plot nowhere/x.png", ["no folder nowhere"]),
    ],
)
def test_a_mistake_is_named_with_its_value_and_a_way_out(
    words: str, pieces: list[str], runs: Runs, capsys: Capture
) -> None:
    verb = re.match("(train|predict|eval|show|tarin)", words)
    err = failed(words if verb else f"train fashion_vit_c {words}", capsys)
    assert err.startswith("error: ")
    assert re.search(r"Try 'vitc (\w+ )?--help'.$", err.rstrip())
    assert all(piece in err for piece in pieces)
    assert runs.configs == []


@pytest.mark.parametrize("words", [["train"], ["data", "check"], ["evaluate"], ["show"]])
def test_a_path_that_is_too_long_is_a_mistake(words: list[str], capsys: Capture) -> None:
    assert main([*words, "x" * 300]) == 2
    assert re.search(r"of \d+ characters is too long here", capsys.readouterr().err)


def test_a_current_folder_that_was_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["data", "check", "fashion", "--html", "x.html"]) == 2
    assert "The current folder has been removed." in capsys.readouterr().err


def test_a_misspelt_run_folder_gets_a_suggestion(finished_run: Path, capsys: Capture) -> None:
    err = failed(["eval", str(finished_run.with_name("finishd"))], capsys)
    assert f"Did you mean '{finished_run}'?" in err


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_a_time_is_read_with_its_unit(text: str, value: float) -> None:
    assert seconds(text) == value


# -- train -----------------------------------------------------------------------------------------


def test_a_run_goes_to_its_folder_unless_another_is_given(
    runs: Runs, finished_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "mine", "data": {"source": "synthetic"}}))
    for words in (["debug"], ["debug", "--out", "else/where"], [str(finished_run)], [str(file)]):
        assert main(["train", *words]) == 0
    assert runs.outs == [Path("runs/debug"), Path("else/where"), finished_run, Path("runs/mine")]
    assert runs.configs[2] == load_config("debug")
    first = {"overwrite": False, "notes": [], "allow_changed_data": False, "inspect": True}
    assert runs.settings[0] == first | {"changes": False, "choosing": 0.0}
    assert runs.settings[2] == first | {"changes": True, "choosing": 0.0}
    assert main(["train", "debug", "--overwrite"]) == 0
    assert runs.settings[-1]["overwrite"] is True


def test_the_result_is_on_stdout_as_text_or_strict_json(runs: Runs, capsys: Capture) -> None:
    out = shown(capsys, "train", "debug")
    assert "50.00 %" in out
    assert "vitc predict runs/debug" in out
    runs.summary = {"status": "done", "top1": float("nan"), "run": "runs/debug"}
    last = shown(capsys, "train", "debug", "--json").splitlines()[-1]
    assert json.loads(last) == {"status": "done", "top1": None, "run": "runs/debug"}


def test_a_dry_run_runs_nothing(runs: Runs, capsys: Capture) -> None:
    out = shown(capsys, "train", "debug", "--dry-run", "--optim.lr", "0.125")
    assert "0.125" in out
    assert "runs/debug" in out
    assert json.loads(shown(capsys, "train", "debug", "--dry-run", "--json"))["out"] == "runs/debug"
    assert runs.configs == []


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (ConfigError("w", "h"), 2, "failed"),
        (DataError("w", "h"), 2, "failed"),
        (BrokenFileError("w", "h"), 1, "failed"),
        (CheckpointError("w", "h"), 1, "failed"),
        (RunError("w", "h"), 1, "failed"),
        (DivergedError("w", "h"), 1, "diverged"),
        (InterruptedRun("w", "h", 2), 130, "interrupted"),
        (InterruptedRun("w", "h", 15), 143, "interrupted"),
    ],
)
def test_every_error_has_its_exit_code_its_words_and_its_json(
    error: RunError, code: int, status: str, runs: Runs, capsys: Capture
) -> None:
    runs.error = error
    assert main(["train", "debug"]) == code
    printed = capsys.readouterr()
    assert "w\nh" in printed.err
    assert printed.out == ""
    assert main(["train", "debug", "--json"]) == code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"status": status, "error": "w", "hint": "h"}


def test_a_run_that_diverged_also_says_how_far_it_came(
    runs: Runs, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "summary.json").write_text('{"status": "diverged", "step": 7}')
    runs.error = DivergedError("w", "h")
    assert main(["train", "debug", "--json", "--out", str(tmp_path)]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"status": "diverged", "step": 7, "error": "w", "hint": "h"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AttributeError("module half imported")])
def test_ctrl_c_ends_with_130(error: BaseException, runs: Runs, capsys: Capture) -> None:
    runs.error = error
    if not isinstance(error, KeyboardInterrupt):  # it can come out as that of an import
        error.__context__ = KeyboardInterrupt()
    assert "Interrupted." in failed("train debug", capsys, 130)


def test_a_traceback_is_for_bugs_and_for_debug(runs: Runs, capsys: Capture) -> None:
    runs.error = OSError(28, "No space left on device", "runs/debug/x")
    assert "runs/debug/x: No space left on device." in failed("train debug", capsys, 1)
    runs.error = ZeroDivisionError("ours")
    assert main(["train", "debug", "--json"]) == 1
    printed = capsys.readouterr()
    assert "Traceback" in printed.err
    assert json.loads(printed.out)["error"] == "ZeroDivisionError: ours"
    assert main(["train", "debugg", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_only_the_first_of_several_processes_prints(
    runs: Runs, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert shown(capsys, "train", "debug", "--json") == ""


def test_a_reader_who_leaves_is_not_an_error() -> None:
    command = [sys.executable, "-m", "vitc", "show", "--list"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# -- the front door --------------------------------------------------------------------------------


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the front door; returns the list of what it was asked."""
    import vitc.training.auto as front_door

    asked: list[tuple[Any, ...]] = []

    def propose(
        folder: Path, budget: float | None, settings: Any, start: str, world: int = 1
    ) -> front_door.Proposal:
        asked.append((folder, budget, dict(settings)))
        config = load_config(RunConfig(), data=str(folder), **settings)
        return front_door.Proposal(config, ["model: small - because few"], 60.0, 10**9)

    monkeypatch.setattr(front_door, "propose", propose)
    return asked


def test_a_folder_of_images_goes_through_the_front_door(
    runs: Runs, door: list[Any], photo_folder: Callable[..., Path], capsys: Capture
) -> None:
    folder = photo_folder()
    words = ["train", "--budget", "30m", str(folder), "--train.batch", "16"]
    assert main(words) == 0
    assert door == [(folder, 1800.0, {"train.batch": 16})]
    assert runs.outs == [Path("runs/photos")]
    assert runs.settings[0]["notes"] == ["model: small - because few"]
    assert "model: small - because few" in capsys.readouterr().err


def test_a_dry_run_of_a_folder_saves_what_it_proposes_and_stops(
    runs: Runs, door: list[Any], photo_folder: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", str(photo_folder()), "--out", str(tmp_path / "r" / "x"), "--dry-run"]
    assert main([*words, "--train.batch", "8"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "model: small - because few"
    assert runs.configs == []
    assert main(shlex.split(printed[-1].partition(": vitc ")[2])) == 0
    assert runs.configs[0].train.batch == 8
    assert runs.outs == [tmp_path / "r" / "x"]


def test_a_dry_run_replaces_its_own_config_alone(
    runs: Runs, door: list[Any], photo_folder: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", str(photo_folder()), "--out", str(tmp_path / "lab"), "--dry-run"]
    file = tmp_path / "lab.json"
    file.write_text('{"my": 1}')
    assert main([*words, "--json"]) == 2
    assert f"would replace {file}, which is no config written by vitc" in capsys.readouterr().err
    assert file.read_text() == '{"my": 1}'
    file.unlink()
    assert main([*words, "--train.batch", "8"]) == main([*words, "--train.batch", "16"]) == 0
    assert load_config(file).train.batch == 16


@pytest.mark.parametrize(
    ("answer", "asked"), [("\n", 2), ("Yes\n", 2), ("n\n", 1), ("what?\n", 1), ("", 1), (None, 1)]
)
def test_groups_are_named_and_somebody_at_a_terminal_is_asked_before_they_are_split(
    answer: str | None,
    asked: int,
    runs: Runs,
    door: list[Any],
    photo_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    import vitc.training.auto as front_door

    propose, now = front_door.propose, [0.0]
    monkeypatch.setitem(CLOCKS, "wall", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def with_groups(folder: Path, budget: Any, settings: Any, start: str, world: int) -> Any:
        now[0] += 20
        group = "" if "data.group" in settings else "(person[0-9]+)"
        return replace(propose(folder, budget, settings, start), group=group)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, size: int | None = -1, /) -> str:
            now[0] += 1000
            return super().readline()

    monkeypatch.setattr(front_door, "propose", with_groups)
    folder, err = photo_folder(), sys.stderr
    monkeypatch.setattr(type(err), "isatty", lambda self: True, raising=False)
    monkeypatch.setattr("sys.stdin", Terminal(answer) if answer is not None else io.StringIO("y\n"))
    assert main(["train", str(folder), "--budget", "60s"]) == 0
    assert "--data.group '(person[0-9]+)'" in capsys.readouterr().err
    assert [call[1] for call in door] == [60, 40][:asked]  # waiting for an answer does not count
    assert [call[2].get("data.group") for call in door] == [None, "(person[0-9]+)"][:asked]
    assert runs.configs[0].data.group == (None, "(person[0-9]+)")[asked - 1]
    assert runs.settings[0]["choosing"] == 20 * asked


def test_folds_are_not_trained_by_several_processes(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "Leave out torchrun" in failed(["train", str(photo_folder()), "--folds", "2"], capsys)


def test_variables_of_torchrun_that_are_missing_are_named(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "MASTER_ADDR" in failed(["train", str(photo_folder())], capsys)


def test_a_run_on_the_same_folder_is_resumed_with_its_settings(
    runs: Runs, door: list[Any], photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = photo_folder(), tmp_path / "out"
    out.mkdir()
    before = load_config(RunConfig(), data=str(folder), **{"train.epochs": 77})
    (out / "config.json").write_text(json.dumps(to_dict(before)))
    command = ["train", str(folder), "--out", str(out)]
    assert main(command) == 0
    assert runs.configs == [before]
    assert main([*command, "--train.batch", "8"]) == 0  # the loop refuses it
    assert differences(before, runs.configs[1]) == [f"train.batch: {before.train.batch} -> 8"]
    assert door == []
    assert main([*command, "--overwrite"]) == 0
    assert len(door) == 1


def test_a_run_on_other_images_is_named_before_anything_is_measured(
    runs: Runs,
    door: list[Any],
    photo_folder: Callable[..., Path],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    folder, summary = photo_folder(), finished_run / "summary.json"
    before = load_config(RunConfig(), data=str(folder))
    (finished_run / "config.json").write_text(json.dumps(to_dict(before)))
    own = ["train", str(folder), "--out", str(finished_run)]
    error = failed([*own, "--budget", "20s"], capsys)
    assert f"is finished (top1 61.25 %).\nTrain it longer: vitc train {finished_run} --bu" in error
    assert f"vitc train {finished_run} --budget 20s" in error
    assert "resuming" not in error
    shutil.copytree(folder, tmp_path / "moved" / "photos")
    monkeypatch.chdir(tmp_path / "moved")
    other = ["train", "photos", "--out", str(finished_run)]
    assert "--data.path" not in failed(other, capsys)
    summary.unlink()
    error = failed(other, capsys)
    assert f"{finished_run} is a run on {folder}, not on {Path('photos').absolute()}." in error
    resume = f"vitc train {finished_run} --data.path photos"
    assert f"Choose another --out. If they are the same images, moved: {resume}" in error
    assert main(shlex.split(resume)[1:]) == 0
    assert runs.configs[-1].data.path == str(Path("photos").absolute())
    monkeypatch.chdir(folder.parent)
    assert main(other) == 0  # of the same place, by a relative path
    assert (runs.configs[-1], door) == (before, [])
    monkeypatch.chdir(tmp_path / "moved")
    assert main([*other, "--overwrite"]) == 0
    assert len(door) == 1


@pytest.mark.parametrize("words", [[], ["--init", "W"], ["--budget", "30m", "--train.batch", "8"]])
def test_the_same_command_again_resumes_its_run(
    words: list[str],
    runs: Runs,
    door: list[Any],
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out", "W"):
        (tmp_path / name).mkdir()
    command = ["train", str(photo_folder()), "--out", "out", *words]
    assert main(command) == 0
    (tmp_path / "out" / "config.json").write_text(json.dumps(to_dict(runs.configs[0])))
    (tmp_path / "W").rmdir()  # the weights are no longer there
    assert main(command) == 0
    assert len(door) == 1
    assert runs.configs[1] == runs.configs[0]


def test_a_file_of_images_is_trained_on_too_but_not_a_pattern_of_files(
    runs: Runs, door: list[Any], tmp_path: Path, capsys: Capture
) -> None:
    for suffix in (".vitc", ".csv", ".parquet", ".tar"):
        file = tmp_path / f"pets{suffix}"
        file.touch()
        assert main(["train", str(file), "--budget", "30m"]) == 0
        assert door.pop() == (file, 1800.0, {})
        assert runs.outs.pop() == Path("runs/pets")
    capsys.readouterr()
    error = failed(["train", str(tmp_path / "shards-{000..012}.tar")], capsys)
    assert f"vitc train cifar10_vit_c --data '{tmp_path}/shards-{{000..012}}.tar'" in error


# -- eval ------------------------------------------------------------------------------------------


def test_evaluate_passes_its_options_on_and_shows_the_result(
    trained: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked = []
    real, classes = vitc.evaluate(trained), 6

    def evaluate(*args: Any, **allowed: bool) -> Evaluation:
        asked.append((*args, allowed))
        per_class = real.per_class[:1] * classes
        shown = {"n": 1234, "top1": 12.345, "top5": 50.0, "per_class": per_class}
        return replace(real, split=args[2], weights=args[3], average="", **shown)

    monkeypatch.setattr(vitc.deploy.evaluation, "evaluate", evaluate)
    words = ["eval", "--split", "test", str(finished_run), "cifar10", "--weights", "raw"]
    out = shown(capsys, *words)
    allowed = dict.fromkeys(("allow_changed_data", "skip_unknown_classes", "skip_broken"), False)
    assert asked == [(finished_run, "cifar10", "test", "raw", "auto", allowed)]
    assert "1,234 test images, last weights" in out
    assert "12.35 %" in out or "12.34 %" in out
    assert "top-5" in out
    assert json.loads(shown(capsys, *words, "--json"))["top1"] == 12.345
    classes = 5
    assert "top-5" not in shown(capsys, *words)
    assert json.loads(shown(capsys, *words, "--json"))["top5"] == 50.0


@pytest.mark.parametrize("classes", [5, 6])
def test_what_five_classes_cannot_miss_is_not_shown_for_a_run(
    classes: int, finished_run: Path, capsys: Capture
) -> None:
    record = {"classes": [f"class {i}" for i in range(classes)]}
    (finished_run / "data.json").write_text(json.dumps(record))
    out = shown(capsys, "show", str(finished_run))
    assert ("top5" in out) == (classes == 6)
    assert "61.25" in out
    assert json.loads(shown(capsys, "show", str(finished_run), "--json"))["evals"][-1]["top5"] == 99


# -- show ------------------------------------------------------------------------------------------


def test_show_list_names_every_model_and_recipe(capsys: Capture) -> None:
    out = shown(capsys, "show", "--list")
    assert all(f"  {name} " in out for name in [*vitc.list_models(), *RECIPES])


def test_show_model_compares_with_the_paper_and_its_twin(capsys: Capture) -> None:
    out = shown(capsys, "show", "vit_c_1gf")
    cost = vitc.complexity(vitc.create_model("vit_c_1gf"))
    counts = [f"{n:,}" for n in (cost.flops, cost.params, cost.activations)]
    assert all(text in out for text in (*counts, "Table 1", "vit_p_1gf", "blocks.0-10"))
    words = "show vit_c_1gf --json --model.depth 2 --model.img_size 64"
    values = json.loads(shown(capsys, *words.split()))  # changed: counted, not compared
    model = vitc.create_model("vit_c_1gf", img_size=64, depth=2)
    assert values["params"] == vitc.complexity(model).params
    assert not values.keys() & {"reported", "twin"}


def test_parts_add_up_to_the_whole(capsys: Capture) -> None:
    values = json.loads(shown(capsys, "show", "vit_p_tiny", "--json"))
    for what in ("flops", "params", "activations"):
        assert values[what] == sum(p["repeats"] * p[what] for p in values["parts"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if i % 4 else ()) for i, name in enumerate(RECIPES)],
)
def test_every_recipe_can_be_shown(name: str, capsys: Capture) -> None:
    out = shown(capsys, "show", name)
    assert "lr, peak" in out
    assert "model.kind" in out


def test_show_recipe_gives_the_schedule_in_numbers_and_as_a_picture(
    tmp_path: Path, capsys: Capture
) -> None:
    plot = tmp_path / "lr.png"
    words = "--train.epochs 5 --optim.schedule.warmup_epochs 1 --train.batch 64"
    out = shown(capsys, "show", "debug", "--json", "--plot", str(plot), *words.split())
    schedule = json.loads(out)["schedule"]
    assert schedule["total_steps"] == 5 * (schedule["train_images"] // 64)
    assert schedule["warmup_steps"] == schedule["steps_per_epoch"]
    assert schedule["first_lr"] < schedule["last_lr"] < schedule["peak_lr"]
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (
            "--optim.schedule.warmup_epochs 1 --train.epochs 2 --train.batch 512",
            ["1 epoch, 1 step", "of 1 step"],
        ),
        ("--train.batch 65536 --json", ["exceeds the"]),
        (
            "--optim.lr 1 --optim.lr_per_batch 2048 --train.batch 64 --train.micro_batch 64",
            ["1 per 2048 images x batch 64", "0.03125"],
        ),
    ],
)
def test_show_recipe_has_the_numbers_that_follow(
    words: str, pieces: list[str], capsys: Capture
) -> None:
    out = shown(capsys, "show", "debug", *words.split())
    assert all(piece in out for piece in pieces)
    assert not re.search(r"(?<![\d.,])1 (epochs|steps)", out)


def test_show_run_gives_its_result_and_curves(
    finished_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    plot = tmp_path / "curves.svg"
    out = shown(capsys, "show", str(finished_run), "--plot", str(plot))
    assert "done, at step 20" in out
    assert "61.25" in out
    assert b"<svg" in plot.read_bytes()
    values = json.loads(shown(capsys, "show", str(finished_run), "--json"))
    assert (values["status"], values["summary"]["top1"]) == ("done", 61.25)
    (finished_run / "summary.json").unlink()
    out = shown(capsys, "show", str(finished_run))
    assert "not running (it was killed, or its machine stopped), at step 20" in out
    assert f"vitc train {finished_run}" in out
    assert re.search(r"last written +\d+ s ago", out)
    for writer, status in ((os.getpid(), f"running, process {os.getpid()}"), ("5", "unfinished")):
        host = socket.gethostname() if status != "unfinished" else "elsewhere"
        (finished_run / ".lock").write_text(f"process {writer} on {host}\n")
        assert status in shown(capsys, "show", str(finished_run))


def test_settings_of_what_has_run_already_cannot_be_changed(
    finished_run: Path, capsys: Capture
) -> None:
    assert "no effect" in failed(["show", str(finished_run), "--train.epochs", "3"], capsys)


def test_a_table_is_plain_in_a_file_and_drawn_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [
        Text("words"),
        Table("Title", ("name", "n"), [("[x]", "1,000"), ("yy", "2")]),
    ]
    plain = io.StringIO()
    write(parts, plain)
    assert plain.getvalue() == "words\n\nTitle\n  name      n\n  [x]   1,000\n  yy        2\n"
    drawn = io.StringIO()
    monkeypatch.setattr(drawn, "isatty", lambda: True, raising=False)
    write(parts, drawn)
    assert "─" in drawn.getvalue()
    assert "[x]" in drawn.getvalue()
