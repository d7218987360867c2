"""Settings that a study decides itself are refused, not measured as without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.invented import HERE
from vitc.cli.main import main
from vitc.config import flat_values
from vitc.errors import ConfigError
from vitc.study.design import Plan
from vitc.study.measures import MEASURES
from vitc.study.measures.base import request_of
from vitc.study.studies import continued, stages
from vitc.study.study_folder import StudyFolder

MODELS = ["vit_c_tiny", "vit_p_tiny"]


def planned(folder: Path, measure: str = "hparams", **words: Any) -> Plan:
    words = {"recipes": "debug", "runs": 2, **words}
    if "contenders" not in words:
        words = {"models": MODELS, **words}
    study = StudyFolder(folder)
    request = continued(request_of(MEASURES[measure], **words), study, measure)
    return list(stages(measure, request, study, dry=True))[-1][1]


@pytest.mark.parametrize(
    ("measure", "words", "named"),
    [
        ("hparams", {"train.seed": 7}, "train.seed 7 has no effect"),
        ("hparams", {"train.seed": 0}, "train.seed 0 has no effect"),
        ("hparams", {"train.device": "cpu", "train.threads": 2}, r"train.threads 2 .* \(here 1\)"),
        ("hparams", {"train.epochs": 6, "train.eval_every_epochs": 1}, "train.eval_every_epochs 1"),
        ("hparams", {"optim.lr": 1.0, "range": [("optim.lr", "0.1", "1")]}, "optim.lr 1.0 has no"),
        ("length", {"lengths": [4, 8], "train.eval_every_epochs": 1}, "train.eval_every_epochs 1"),
        ("length", {"train.seed": 7}, "train.seed 7 has no effect"),
        ("seeds", {"train.seed_init": 7}, "train.seed_init has no effect"),
        ("vary", {"set": [("train.seed", [1, 2])]}, "train.seed 1 of the point 'seed 1' has no"),
        (
            "vary",
            {"set": [("train.threads", [1, 2])], "train.device": "cpu"},
            "train.threads 2 of the point 'threads 2'",
        ),
        (
            "vary",
            {"set": [("train.eval_every_epochs", [1, 2])], "train.epochs": 6},
            "train.eval_every_epochs 1 of the point",
        ),
        ("hparams", {"contenders": {"a": {"train.seed": 1}, "b": {}}}, "train.seed 1 of a has no"),
        (
            "hparams",
            {"contenders": {"a": {"optim.lr": 1.0}, "b": {"optim.lr": 1e-5}}},
            "optim.lr 1.0 of a has no effect",
        ),
        (
            "hparams",
            {"contenders": {"a": {"model": "vit_c_tiny"}, "b": {"model": "vit_c_tiny"}}},
            "a/adamw and b/adamw would be the same trials: all their settings agree",
        ),
        (
            "vary",
            {
                "contenders": {"a": {}, "b": {"optim.lr": 1.0}},
                "set": [("train.batch", [16, 32])],
                "tune": 2,
            },
            "optim.lr 1.0 of b has no effect: draws replace it",
        ),
        ("hparams", {"optim.lr_per_batch": 2048, "optim.lr": 1e-3}, "the paper's range"),
        ("vary", {"train.batch": 8, "set": [("train.batch", [16, 32])]}, "every point has its own"),
        (
            "hparams",
            {"contenders": {"a": {"data.workers": 1}, "b": {"data.workers": 2}}, "data.workers": 0},
            "data.workers 0 has no effect: every contender has its own",
        ),
        (
            "vary",
            {"contenders": {"a": {"optim.lr": 1.0}, "b": {}}, "set": [("optim.lr", [0.1, 0.2])]},
            "would be the same trials",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(
    measure: str, words: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        planned(tmp_path / "s", measure, **words)


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("hparams", {"train.epochs": 3, "train.eval_every_epochs": 3}),
        ("hparams", {"train.epochs": 3, "train.eval_every_epochs": 2}),
        ("hparams", {"train.device": "cpu", "train.threads": 1}),
        ("hparams", {"train.seed_init": 7}),
        ("hparams", {"optim.lr": 1e-3}),
        ("hparams", {"contenders": {"a": {"optim.lr": 1.0}, "b": {}}, "ranges": "separate"}),
        ("hparams", {"contenders": {"a": {"data.workers": 1}, "b": {}}}),
        ("hparams", {"control": True}),
        ("length", {"lengths": [2, 20], "train.eval_every_epochs": 3}),
        ("vary", {"contenders": {"a": {"optim.lr": 1.0}, "b": {}}, "set": [("train.batch", [8])]}),
        (
            "vary",
            {"train.batch": 8, "set": [("train.batch", [16, 32]), ("optim.eps", [1e-8, 1e-6])]},
        ),
        ("vary", {"train.batch": 8, "tune": 2, "set": [("train.batch", [16, 32])]}),
        ("vary", {"optim.lr": 1e-3, "times": [("optim.lr", [1.0, 2.0])]}),
        ("vary", {"times": [("optim.lr", [1.0, 2.0])], "set": [("train.batch", [16, 32])]}),
    ],
)
def test_what_takes_effect_or_is_the_studys_own_value_is_accepted(
    measure: str, words: dict[str, Any], tmp_path: Path
) -> None:
    plan = planned(tmp_path / "s", measure, **words)
    if "tune" in words:  # of the tuning's trials, which come before
        return
    for name in (n for n in words if "." in n and n != "optim.lr"):
        values = {flat_values(g.settings)[name] for g in plan.groups}
        assert words[name] in values


def test_a_study_that_was_begun_with_such_a_setting_goes_on(tmp_path: Path) -> None:
    words: dict[str, Any] = {"recipes": "debug", "models": MODELS, "train.seed": 7}
    measure = MEASURES["hparams"]
    old = measure.plan(request_of(measure, runs=2, name="s", **words))
    StudyFolder(tmp_path / "s").start(old, HERE, "test")
    assert planned(tmp_path / "s", runs=4, **words).draws == 4


@pytest.mark.parametrize(
    "words",
    [
        "quick --draws 8 --train.seed 3",
        "paper fig3 --train.seed 3",
        "paper table3 --train.seed 3",
        "hparams debug --train.seed 3",
    ],
)
def test_the_command_names_it_and_ends_with_2(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--train.precision", "fp32", "--train.device", "cpu"]
    assert main(["study", *words.split(), *fixed, "--dry-run", "--out", str(tmp_path / "s")]) == 2
    assert "train.seed 3 has no effect in a study" in capsys.readouterr().err


def test_quick_may_be_made_longer(tmp_path: Path) -> None:
    words = ["quick", "--draws", "8", "--train.epochs", "20", "--train.precision", "fp32"]
    assert main(["study", *words, "--dry-run", "--out", str(tmp_path / "s")]) == 0
