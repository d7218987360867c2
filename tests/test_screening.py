"""The screening card: which trials it runs, what it compares, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import reference_trials
from tests.invented import invent
from vitc import study
from vitc.cli.main import main
from vitc.errors import ConfigError
from vitc.models.timm import import_peer
from vitc.models.zoo import build_model
from vitc.study import screening
from vitc.study.design import Plan, Trial
from vitc.study.measures import hparams
from vitc.study.quick import quick_plan
from vitc.study.screening import (
    CONTROL,
    DRAWS,
    EPOCHS,
    REFERENCE,
    REFERENCES,
    REPLAYED,
    SEEDS,
    SHORT,
    SHORTER,
    card_stages,
    contender_plan,
    read_card,
    reference_plan,
    set_of,
    shipped_results,
)
from vitc.study.screening_page import replay_doubt, replay_text, write_card
from vitc.study.study_folder import StudyFolder

pytestmark = pytest.mark.usefixtures("counted_once")

Error = Callable[[Trial], float | None]
STEM = """
from torch import nn

class MyStem(nn.Module):
    reduction = 8

    def __init__(self, in_chans, embed_dim, width=24):
        super().__init__()
        self.layer = nn.Conv2d(in_chans, embed_dim, 8, 8)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are opened once, not for every plan."""
    monkeypatch.setattr(hparams, "count_classes", lambda config: 10)


@pytest.fixture
def stem(tmp_path: Path) -> str:
    file = tmp_path / "my_stem.py"
    file.write_text(STEM)
    return f"{file}:MyStem"


def noisy(trial: Trial) -> float:
    """About 30 %, 40 % after the short runs, with the luck of contender, optimizer and draw."""
    name = f"{trial.draw} {trial.contender} {trial.optim} {trial.config.train.epochs}"
    rng = np.random.default_rng(list(name.encode()))
    return float(np.round(40 - 5 * trial.config.train.epochs + rng.normal(), 4))


def record_of(plan: Plan, error: Error) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for trial in plan.trials():
        group = found.setdefault(trial.contender, {}).setdefault(
            trial.optim, {"errors": [], "failed": []}
        )
        value = error(trial)
        group["errors"].append(90.0 if value is None else value)
        group["failed"] += [trial.draw] if value is None else []
    return found


@cache
def made_up() -> str:
    sets: dict[str, Any] = {}
    for name in SEEDS:
        plan = reference_plan(name)
        sets[name] = {
            "settings": {o: list(plan.ranges[o]) for o in plan.optims},
            "values": {
                o: [list(plan.draw_values(o, i).values()) for i in range(DRAWS)]
                for o in plan.optims
            },
            "epochs": {str(e): record_of(reference_plan(name, e), noisy) for e in (EPOCHS, SHORT)},
        }
    environment = {"versions": {"torch": "2"}, "hardware": {"cpu": "some"}}
    return json.dumps({"sets": sets, "made": "today", "command": "x", "environment": environment})


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Reference trials whose errors are made up."""
    record: dict[str, Any] = json.loads(made_up())
    monkeypatch.setattr(screening, "shipped", lambda: record)
    return record


def run(stages: list[screening.Stage], mine: Error, again: Error = noisy) -> screening.Card:
    """The card whose trials have these errors; `again`: those of the references."""
    (name,) = stages[0][1].contenders
    for folder, plan in stages:
        invent(folder, plan, lambda t: mine(t) if t.contender == name else again(t))
    return read_card(stages[0][0].path)


# -- what is run -----------------------------------------------------------------------------------


def test_a_card_runs_fixed_draws_the_same_shorter_and_some_references(
    stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    (main_folder, plan), (_, short), (_, replay) = card_stages([stem], tmp_path / "card")
    assert [p.draws for p in (plan, short, replay)] == [DRAWS, DRAWS, REPLAYED]
    assert plan.contenders == ["MyStem"]
    assert plan.seed == short.seed == replay.seed
    assert {g.config.train.epochs for g in plan.groups} == {EPOCHS}
    assert {g.config.train.epochs for g in short.groups} == {SHORT}
    name = screening._set_in(plan)
    ids = {t.id for t in reference_plan(name).trials()}
    assert {t.id for t in replay.trials()} < ids, "they are the shipped ones, to the setting"
    assert plan.ranges == reference_plan(name).ranges
    assert not main_folder.path.exists()


def test_the_set_of_draws_follows_from_the_content_not_the_name(
    stem: str, references: dict[str, Any]
) -> None:
    def given(name: str, own: dict[str, Any]) -> str:
        return set_of(contender_plan(name, own, "A").groups[0])

    assert given("a", {"model.stem": stem}) == given("b", {"model.stem": stem})
    variants = {given("a", {"model.stem": f"{stem}(width={w})"}) for w in range(1, 7)}
    assert len(variants) > 1


def test_a_model_that_is_a_reference_has_its_very_trials() -> None:
    plan = contender_plan("vit_c_tiny", {"model": "vit_c_tiny"}, "A")
    assert plan.contenders == ["vit_c_tiny here"]
    assert {t.id for t in plan.trials()} < {t.id for t in reference_plan("A").trials()}


def test_a_model_of_torchvision_takes_grey_images_three_times(
    references: dict[str, Any], tmp_path: Path
) -> None:
    try:
        import_peer("torchvision")
    except ImportError:
        pytest.skip("torchvision is missing: no card of its models was planned")
    for _, plan in card_stages(["torchvision:resnet18"], tmp_path / "card"):
        chans = {g.config.model.in_chans for g in plan.groups if "resnet18" in g.contender}
        assert chans <= {3}
        build_model(plan.groups[0].config.model, plan.classes)


@pytest.mark.parametrize(
    ("contenders", "text"),
    [
        (["adamw"], "adamw sets optim"),
        (["vit_c_tiny", "vit_p_tiny_patch4"], "not of 2"),
        ({"x": {"model": "vit_c_tiny", "train.epochs": 9}}, "train.epochs"),
    ],
)
def test_what_is_no_stem_or_model_is_refused(
    contenders: Any, text: str, references: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        card_stages(contenders, tmp_path / "card")


def test_another_contender_in_the_folder_and_more_draws_are_refused(
    stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "card"
    run(card_stages([stem], folder), noisy)
    assert len(card_stages([stem], folder)) == 3, "the same again resumes"
    with pytest.raises(ConfigError, match="holds another study"):
        card_stages(["vit_c_tiny_patch4"], folder)
    Path(stem.partition(":")[0]).write_text(STEM + "# changed\n")
    with pytest.raises(ConfigError, match="sha256"):
        card_stages([stem], folder)
    record = json.loads((folder / "plan.json").read_text())
    record["history"].append({"what": "extended from 24 to 48 draws", "draws": [24, 48]})
    (folder / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="never extended"):
        read_card(folder)


def test_another_study_is_no_card(references: dict[str, Any], tmp_path: Path) -> None:
    plan, _ = quick_plan(1.0, 1, draws=1, **{"train.precision": "fp32"})
    folder = StudyFolder(tmp_path / "s")
    invent(folder, plan, lambda t: 30.0)
    with pytest.raises(ConfigError, match="no screening card"):
        read_card(folder.path)


def test_shipped_trials_of_other_draws_are_refused(references: dict[str, Any]) -> None:
    references["sets"]["A"]["values"]["sgd"][3][0] *= 2
    with pytest.raises(ConfigError, match="other settings"):
        shipped_results("A", EPOCHS, Path("x"))


# -- what is concluded -----------------------------------------------------------------------------


def test_verdicts_are_those_of_compare_over_the_four_comparisons(
    stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    card = run(card_stages([stem], tmp_path / "card"), lambda t: noisy(t) - 3)
    rivals = [c for c in card.contrasts if not c.is_control]
    assert [(c.reference, c.optim) for c in rivals] == [
        (REFERENCE, "adamw"), ("vit_c_tiny", "adamw"), (REFERENCE, "sgd"), ("vit_c_tiny", "sgd"),
    ]  # fmt: skip
    errors = {(g.contender, g.optim): list(g.errors) for g in card.groups}
    for c in rivals:
        assert c.found == study.compare(
            errors["MyStem", c.optim], errors[c.reference, c.optim], family=4, margin=2.0
        )
        assert c.found.verdict == "lower"
    assert {c.contender for c in card.contrasts if c.is_control} == {CONTROL}
    lost = {c.found.verdict for c in card.losses}
    assert lost <= {"open", "equivalent"}, "three better with both lengths: nothing more is lost"


def test_better_but_dead_in_two_fifths_of_draws_is_no_winner(
    stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    card = run(
        card_stages([stem], tmp_path / "card"), lambda t: None if t.draw % 5 < 2 else noisy(t) - 6
    )
    assert {c.found.verdict for c in card.contrasts if not c.is_control} == {"mixed"}
    page = write_card(card).read_text()
    assert page.count("no winner") == 4


@pytest.mark.parametrize(
    ("change", "same", "valid", "text"),
    [
        (lambda t: noisy(t), 16, True, "to the digit"),
        (lambda t: noisy(t) + (1.5 if t.draw % 2 else -1.4), 0, True, "standard deviation"),
        (lambda t: noisy(t) + 2 + t.draw / 10, 0, False, "others differ by"),
    ],
)
def test_whether_the_shipped_trials_hold_here(
    change: Error,
    same: int,
    valid: bool,
    text: str,
    stem: str,
    references: dict[str, Any],
    tmp_path: Path,
) -> None:
    card = run(card_stages([stem], tmp_path / "card"), noisy, change)
    assert card.replay.identical == same
    assert text in replay_text(card.replay)
    assert (replay_doubt(card.replay) == "") == valid
    page = write_card(card)
    assert ("do not hold on this machine" in page.read_text()) != valid
    assert json.loads((page.parent / "card.json").read_text())["replay"]["valid"] == valid


def test_the_page_has_every_part_and_names_its_set(
    stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    card = run(card_stages([stem], tmp_path / "card"), noisy)
    page = write_card(card, "vitc study card my_stem.py:MyStem")
    text = page.read_text()
    for part in (
        f"set {card.draw_set}",
        "failed to learn, % (95 %)",
        "octaves of lr near the best",
        "Lost by shorter training",
        "Sensitivity to the task",
        "Mflops",
        "s a trial here",
        "80 % power",
        "What this card does not show",
        "vitc study card my_stem.py:MyStem",
    ):
        assert part in text, part
    values = json.loads((page.parent / "card.json").read_text())
    assert (values["contender"], values["draws"], values["unfinished"]) == ("MyStem", DRAWS, 0)
    (mine,) = [
        c for c in values["contenders"] if c["contender"] == "MyStem" and c["optim"] == "sgd"
    ]
    assert mine["n"] == DRAWS
    assert mine["loss"]["estimate"] == pytest.approx(10, abs=1)
    assert mine["flops"] > 1e6
    assert {s["contender"] for s in values["sensitivity"]} == {"MyStem", *REFERENCES}


@pytest.mark.parametrize("asked", [True, False])
def test_references_may_be_run_here_and_are_where_none_ship(
    asked: bool, stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    if not asked:
        references["sets"].clear()
    stages = card_stages([stem], tmp_path / "card", own_references=asked)
    assert [p.draws for _, p in stages] == [DRAWS] * 4
    assert {CONTROL, *REFERENCES} == set(stages[2][1].contenders)
    if not asked:
        return
    card = run(stages, lambda t: noisy(t) - 3, lambda t: noisy(t) + 1)
    found = {c.found.verdict for c in card.contrasts if not c.is_control}
    assert found == {"lower"}
    assert abs(card.contrasts[0].found.difference + 4) < 1
    page = write_card(card).read_text()
    assert "All reference trials were run here" in page
    assert card_stages([stem], tmp_path / "card")[2:] == stages[2:], "the same command resumes"


def test_a_card_that_is_not_finished_shows_what_there_is(
    stem: str, references: dict[str, Any], tmp_path: Path
) -> None:
    first = card_stages([stem], tmp_path / "card")[:1]
    card = run(first, noisy)
    assert not (tmp_path / "card" / SHORTER).exists()
    assert not [c for c in card.losses if not c.is_control]
    assert "No reference trial" in write_card(card).read_text()


# -- the file that ships, the command --------------------------------------------------------------


def test_the_file_that_ships_has_every_trial_of_its_sets() -> None:
    record = screening.shipped()
    assert record["sets"].keys() <= SEEDS.keys()
    assert not record["sets"] or record["budget"] == screening.BUDGET
    for name in record["sets"]:
        for epochs in (EPOCHS, SHORT):
            found = shipped_results(name, epochs, Path("x"))
            assert len(found) == len(list(reference_plan(name, epochs).trials()))
            assert all(r.error is not None and 0 < r.error <= 100 for r in found)


def test_dry_run_writes_nothing(
    stem: str, references: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card"
    assert main(["study", "card", stem, "--out", str(out), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "48 trials of MyStem" in shown.out
    assert "About" in shown.err
    assert not out.exists()
    assert main(["study", "card", stem, "--out", str(out), "--draws", "64"]) == 2


@pytest.mark.slow
def test_a_card_of_a_reference_finds_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real trials, few and short: made as the shipped ones are, then run again by the command."""
    monkeypatch.setattr(screening, "DRAWS", 2)
    monkeypatch.setattr(screening, "REPLAYED", 1)
    monkeypatch.setitem(screening.BUDGET, "data.max_train", 128)
    monkeypatch.setattr(reference_trials, "FILE", tmp_path / "trials.json")
    reference_trials.main(["B"], tmp_path / "reference")
    record = json.loads((tmp_path / "trials.json").read_text())
    monkeypatch.setattr(screening, "shipped", lambda: record)
    out = str(tmp_path / "card")
    assert main(["study", "card", "vit_c_tiny", "--out", out, "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (values["contender"], values["draw_set"]) == ("vit_c_tiny here", "B")
    assert values["replay"]["identical"] == values["replay"]["n"] == 4
    against = [c for c in values["comparisons"] if c["reference"] == "vit_c_tiny"]
    assert [c["difference"] for c in against] == [0.0, 0.0]
