"""A run whose learning rate, schedule or length is changed on the way, bit-exactly resumed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import vitc
from tests.test_loop import assert_same_run, stop_after, tiny
from vitc.cli.main import main
from vitc.config import read_config
from vitc.deploy.show import page
from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.runs.folder import Run, last_step
from vitc.runs.legs import Leg, cuts, lr_at, next_leg, read_legs, with_rates
from vitc.training.loop import run

EACH = 10  # steps of an epoch


def config(**settings: Any) -> Any:
    return load_config("debug", **{"train.epochs": 10, "optim.lr": 1e-3, **settings})


@pytest.mark.parametrize(
    ("schedule", "then", "step", "text"),
    [
        ("wsd", {"train.epochs": 20}, 50, "continues at 0.001"),  # from its stable part
        ("wsd", {"train.epochs": 20}, 95, "rises from 0.000134 to its schedule over 10 steps"),
        ("cosine", {"train.epochs": 20}, 50, "rises from 0.000587 to its schedule over 15 steps"),
        ("cosine", {"train.epochs": 8}, 50, "falls to"),
        ("constant", {"optim.lr": 3e-4}, 50, "falls to 0.0003"),
        ("constant", {"optim.lr": 3e-3}, 50, "rises from 0.001 to its schedule over 5 steps"),
        ("constant", {"optim.schedule": "linear"}, 50, "falls to"),
    ],
)
def test_the_learning_rate_is_a_closed_form_over_the_border(
    schedule: str, then: dict[str, Any], step: int, text: str
) -> None:
    before = config(**{"optim.schedule": schedule})
    now = load_config(before, **then)
    legs, (note,) = next_leg(before, now, (), step, EACH * now.train.batch)
    assert text in note
    assert legs == (Leg(step, before),)
    rates = [lr_at(now, legs, s, EACH) for s in range(EACH * now.train.epochs)]
    assert rates[:step] == [lr_at(before, (), s, EACH) for s in range(step)]
    rewarm = round(0.1 * (EACH * now.train.epochs - step)) if "rises" in text else 0
    own = [lr_at(now, (), s, EACH) for s in range(EACH * now.train.epochs)]
    assert rates[step + rewarm :] == own[step + rewarm :]
    if rewarm:
        assert rates[step] == pytest.approx(lr_at(before, (), step, EACH))
        assert max(rates[step : step + rewarm]) <= max(own[step:])


@pytest.mark.parametrize(
    ("then", "text", "rates"),
    [
        # Cut to a quarter, it rises to the new one, which is not cut.
        (
            {"optim.lr": 5e-4},
            "rises from 0.00025 to its schedule over 5 steps (re-warm-up: 10 % of what is left), "
            "without the 2 cuts by rollbacks so far",
            (2.5e-4, 5e-4),
        ),
        ({"optim.lr": 1e-4}, "falls to 0.0001 on its schedule, without the 2 cuts", (1e-4, 1e-4)),
        # The same rate for longer stays cut, by what multiplies both sides of the border.
        (
            {"train.epochs": 20},
            "continues at 0.00025 on its schedule times 0.25 (after 2 rollbacks)",
            (1e-3, 1e-3),
        ),
    ],
)
@pytest.mark.parametrize("recorded", [{"lr": 1e-3}, {}], ids=["now", "by an earlier version"])
def test_a_rate_that_is_set_after_rollbacks_begins_uncut(
    recorded: dict[str, float], then: dict[str, Any], text: str, rates: tuple[float, float]
) -> None:
    before = config(**{"optim.schedule": "constant"})
    now = load_config(before, **then)
    rollbacks = [{"at": 45, "to": 40, "lr_factor": f, **recorded} for f in (0.5, 0.25)]
    legs, (note,) = next_leg(before, now, (), 50, EACH * now.train.batch, rollbacks)
    assert text in note
    assert [lr_at(now, legs, step, EACH) for step in (50, 60)] == pytest.approx(rates)
    again, _ = next_leg(now, before, legs, 70, EACH * now.train.batch, with_rates(rollbacks, 1e-3))
    back = lr_at(before, again, 80, EACH)
    assert back * 0.5 ** cuts(with_rates(rollbacks, 1e-3), before) == pytest.approx(2.5e-4)


def test_a_border_at_the_same_or_an_earlier_step_replaces_those_after_it() -> None:
    a, b, c = (config(**{"optim.lr": lr}) for lr in (1e-3, 2e-3, 3e-3))
    images = EACH * a.train.batch
    legs, _ = next_leg(a, b, (), 50, images)
    assert next_leg(b, c, legs, 50, images)[0] == (Leg(50, a),)  # none was trained with b
    assert next_leg(b, c, legs, 30, images)[0] == (Leg(30, a),)
    assert next_leg(b, c, legs, 70, images)[0] == (Leg(50, a), Leg(70, b))
    assert next_leg(b, b, legs, 70, images) == (legs, [])
    assert next_leg(b, c, legs, 0, images) == ((), [])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps that was stopped after a few, with a checkpoint every 3."""
    out = tmp_path_factory.mktemp("legs") / "run"
    settings = {"train.epochs": 3, "train.save_every_steps": 3, "train.keep_checkpoints": 9}
    settings |= {"data.max_train": 128}
    stop_after(tiny(**settings), out, step=5)
    return out


def copy(begun: Path, to: Path) -> Path:
    return Path(shutil.copytree(begun, to))


CHANGED: dict[str, Any] = {"optim.lr": 3e-4, "train.epochs": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost",
    [
        ["latest"],
        *(pytest.param(v, marks=pytest.mark.slow) for v in ([], ["latest", "the border"])),
    ],
)
def test_a_kill_after_the_border_changes_no_bit(
    lost: list[str], begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = copy(begun, tmp_path / "whole"), copy(begun, tmp_path / "cut")
    border = last_step(begun / "checkpoints")
    vitc.train(whole, **CHANGED)
    killed = os.fork()
    if killed == 0:
        from vitc.training.step import NormStatistics

        steps = iter(range(100))
        before = NormStatistics.before_micro

        def dies(self: NormStatistics, index: int) -> None:
            if next(steps) == 8:
                os.kill(os.getpid(), 9)
            before(self, index)

        NormStatistics.before_micro = dies  # type: ignore[method-assign]
        vitc.train(cut, **CHANGED)
        os._exit(1)
    assert os.waitpid(killed, 0)[1] == 9
    assert last_step(cut / "checkpoints") > border
    if "the border" in lost:  # it is resumed from before the border, under the earlier settings
        for checkpoint in (cut / "checkpoints").glob("step_*"):
            if int(checkpoint.name[5:]) >= border:
                shutil.rmtree(checkpoint)
    for name in lost[:1]:
        (cut / "checkpoints" / name).unlink()
    result = vitc.train(cut)
    assert result.status == "done"
    assert result.summary["step"] == 32
    assert_same_run(whole, cut)
    (leg,) = read_legs(cut, read_config(cut))
    assert (leg.until, leg.config.train.epochs) == (border, 3)
    assert f"leg 2 of the run begins after step {border}" in (cut / "events.log").read_text()
    rows = dict(page(str(cut), {}, None).parts[0].rows)  # type: ignore[union-attr]
    assert "train.epochs: 3 -> 4" in rows[f"from step {border} on"]
    rates = {m["step"]: m["lr"] for m in Run(cut).metrics("train")}
    setup = read_config(cut), read_legs(cut, read_config(cut))
    assert rates == {s: lr_at(*setup, s - 1, 8) for s in range(1, 33)}


def test_a_kill_between_the_two_files_leaves_the_run_as_it_was(begun: Path, tmp_path: Path) -> None:
    plain, cut = copy(begun, tmp_path / "plain"), copy(begun, tmp_path / "cut")
    saved = (cut / "config.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitc.runs.folder.Path.unlink", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vitc.train(cut, **CHANGED)
    assert (cut / "legs.json").exists()
    assert (cut / "config.json").read_bytes() == saved
    run(read_config(cut), cut, quiet=True)
    run(read_config(plain), plain, quiet=True)
    assert_same_run(plain, cut)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--optim.lr", "1e-4", "--train.batch", "32"], "train.batch: 16 -> 32"),
        (["--optim.weight_decay", "0.5"], "optim.weight_decay"),
        (["--model", "vit_p_tiny"], "model."),
        (["--train.epochs", "0"], "train.epochs"),
    ],
)
def test_what_cannot_change_within_a_run_is_named(
    words: list[str], text: str, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(begun, tmp_path / "run")
    assert main(["train", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "optim.lr:" not in error
    assert not (out / "legs.json").exists()


def test_a_recipe_or_a_finished_run_does_not_change_on_the_way(begun: Path, tmp_path: Path) -> None:
    out = copy(begun, tmp_path / "run")
    other = load_config(read_config(out), **{"optim.lr": 0.5})
    with pytest.raises(ConfigError, match=r"optim\.lr: .* -> 0\.5") as caught:
        run(other, out, quiet=True)
    assert f"vitc train {out} --optim.lr" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"taken .* already"):
        next_leg(other, load_config(other, **{"train.epochs": 1}), (), 9, 8 * other.train.batch)
    budget = load_config(other, **{"train.budget_seconds": 60})
    with pytest.raises(ConfigError, match=r"optim\.lr cannot change"):
        next_leg(budget, load_config(budget, **{"optim.lr": 1.0}), (), 9, 640)
    summary = json.loads((out / "summary.json").read_text()) | {"status": "done"}
    (out / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="is finished"):
        vitc.train(out, **{"optim.lr": 0.5})
