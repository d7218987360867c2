"""The learning rate and the EMA's weight as closed forms of the step."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from math import cos, pi

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitc.errors import ConfigError
from vitc.optim.config import EmaConfig, check_ema, ema_alpha, horizon_steps
from vitc.optim.schedule import (
    SCHEDULES,
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    ScheduleConfig,
    StepConfig,
    WarmupConfig,
    WsdConfig,
    without_decay,
)

PYCLS = CosineConfig(warmup_epochs=5.0, warmup_start=0.1, floor=0.005, per="epoch")


# ---------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (0, 1e-4),
        (1, 2.79996e-4),
        (4, 8.19799e-4),
        (5, 9.99616e-4),
        (100, 8.54286e-4),
        (200, 5.025e-4),
        (399, 5.01534e-6),
    ],
)
def test_per_epoch_gives_the_authors_rates_at_every_step_of_an_epoch(epoch: int, lr: float) -> None:
    for step_of_epoch in (0, 1, 624):
        step = epoch * 625 + step_of_epoch
        got = PYCLS.lr(step, peak=1e-3, epochs=400, steps_per_epoch=625)
        assert got == pytest.approx(lr, rel=2e-6)


def test_per_step_is_a_line_and_then_half_a_cosine() -> None:
    schedule = CosineConfig(warmup_epochs=2.0, warmup_start=0.1, floor=0.01)
    for step in range(101):
        got = schedule.lr(step, peak=0.5, epochs=10, steps_per_epoch=10)
        if step < 20:
            want = 0.1 + 0.9 * step / 20
        else:
            want = 0.01 + 0.99 * (1 + cos(pi * (step - 20) / 80)) / 2
        assert got == pytest.approx(0.5 * want, rel=1e-12)


def test_the_default_warm_up_is_five_epochs_but_at_most_a_tenth_of_the_run() -> None:
    default = CosineConfig()
    assert default.warmup_steps(epochs=400, steps_per_epoch=625) == 5 * 625
    assert default.warmup_steps(epochs=50, steps_per_epoch=625) == 5 * 625
    assert default.warmup_steps(epochs=20, steps_per_epoch=66) == 2 * 66
    assert default.warmup_steps(epochs=1, steps_per_epoch=70) == 7


@settings(deadline=None)  # a busy machine is no failure
@given(
    epochs=st.integers(1, 60),
    steps_per_epoch=st.integers(1, 60),
    warmup=st.none() | st.floats(0, 60),
    start=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_a_step_schedule_reaches_its_peak_exactly_and_never_jumps(
    epochs: int, steps_per_epoch: int, warmup: float | None, start: float, floor: float
) -> None:
    warmup = None if warmup is None else min(warmup, epochs * 0.999)
    schedule = CosineConfig(warmup_epochs=warmup, warmup_start=start, floor=floor)
    total = epochs * steps_per_epoch
    rates = [
        schedule.lr(s, peak=0.7, epochs=epochs, steps_per_epoch=steps_per_epoch)
        for s in range(total + 1)
    ]
    top = schedule.warmup_steps(epochs, steps_per_epoch)
    assert top < total, "the peak must be a step that the run takes"
    assert rates[top] == 0.7
    assert rates[:top] == sorted(rates[:top]), "the warm-up only rises"
    assert rates[top:] == sorted(rates[top:], reverse=True), "the cosine only falls"
    assert rates[0] == pytest.approx(0.7 * (start if top else 1.0))
    assert rates[-1] == pytest.approx(0.7 * floor)
    line = 0.7 * (1 - start) / max(top, 1)
    cosine = 0.7 * (1 - floor) * pi / 2 / (total - top)
    steepest = max(abs(b - a) for a, b in pairwise(rates))
    assert steepest <= max(line if top else 0.0, cosine) + 1e-12


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (LinearConfig(floor=0.1), {20: 1, 60: 0.55, 100: 0.1}),
        (ConstantConfig(), {20: 1, 60: 1, 100: 1}),
        (StepConfig(), {33: 1, 34: 0.1, 66: 0.1, 67: 0.01, 88: 0.01, 89: 0.001, 100: 0.001}),
        (StepConfig(drops=(0.3, 0.5), factor=0.5), {29: 1, 30: 0.5, 49: 0.5, 50: 0.25, 100: 0.25}),
        (WsdConfig(), {20: 1, 79: 1, 85: 0.5, 95: 1 - 0.75**0.5, 100: 0}),
        (WsdConfig(decay=0.5, floor=0.2), {50: 1, 62.5: 0.6, 100: 0.2}),
    ],
    ids=["linear", "constant", "step", "step with drops", "wsd", "wsd with a floor"],
)
def test_a_schedule_is_its_closed_form(schedule: WarmupConfig, shares: dict[float, float]) -> None:
    warmed = replace(schedule, warmup_epochs=2.0, warmup_start=0.1)
    shares = {0: 0.1, 10: 0.55, 19: 0.955, **shares}
    for step, share in shares.items():
        got = warmed.lr(step, peak=0.5, epochs=10, steps_per_epoch=10)
        assert got == pytest.approx(0.5 * share, rel=1e-6, abs=1e-7), step
    lowered = warmed.lr(100, peak=0.5, epochs=10, steps_per_epoch=10) < 0.5
    assert warmed.decays == lowered


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (CosineConfig(warmup_epochs=10.0), r"warmup_epochs 10\.0 leaves none of the 10"),
        (StepConfig(warmup_epochs=4.0), r"drops starts at 0\.333 of 10 .* the 4 epochs"),
        (WsdConfig(warmup_epochs=4.0, decay=0.7), r"decay 0\.7 of 10 .* the 4 epochs"),
        (StepConfig(drops=(0.5, 0.5)), "must be rising shares"),
        (StepConfig(drops=()), "--optim.schedule constant"),
        (StepConfig(drops=(0.5, 1.0)), r"drops .* in \(0, 1\)"),
        (StepConfig(factor=1.0), r"factor 1\.0 must be in \(0, 1\)"),
        (WsdConfig(decay=0.0), r"decay 0\.0 must be in \(0, 1\]"),
        (LinearConfig(floor=2.0), r"floor 2\.0 must be in \[0, 1\]"),
    ],
)
def test_a_schedule_that_cannot_be_has_one_message(schedule: ScheduleConfig, message: str) -> None:
    found = [*schedule.problems(), *schedule.misfits(10)]
    assert len(found) == 1
    assert re.search(message, found[0])
    default = next(cls for cls in SCHEDULES.values() if cls is type(schedule))()
    assert not [*default.problems(), *default.misfits(1)]


def test_without_decay_a_schedule_keeps_its_warm_up() -> None:
    assert without_decay(PYCLS) == ConstantConfig(warmup_epochs=5.0, warmup_start=0.1)


def test_the_last_update_of_a_run_stays_at_or_above_the_floor() -> None:
    for per in ("step", "epoch"):
        schedule = CosineConfig(warmup_start=0.1, floor=0.005, per=per)
        last = schedule.lr(1249, peak=1.0, epochs=50, steps_per_epoch=25)
        assert 0.005 <= last < 0.007


def test_no_warm_up_starts_at_the_peak() -> None:
    for per in ("step", "epoch"):
        schedule = CosineConfig(warmup_epochs=0.0, warmup_start=0.1, per=per)
        assert schedule.lr(0, peak=0.3, epochs=3, steps_per_epoch=4) == 0.3


def test_a_whole_epoch_at_rate_zero_is_refused() -> None:
    assert "learning rate 0" in CosineConfig(per="epoch").problems()[0]
    assert not CosineConfig(per="epoch", warmup_start=0.1).problems()
    assert not CosineConfig(per="epoch", warmup_epochs=0.0).problems()


def test_schedules_and_their_checks_answer_without_torch() -> None:
    code = (
        "import sys, vitc.optim.schedule as o, vitc.optim.config as c, vitc.recipes;"
        "o.CosineConfig().lr(0, peak=1.0, epochs=1, steps_per_epoch=1);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------- weight average


@pytest.mark.parametrize(
    ("epochs", "alpha"),
    [(400, 0.0016384), (200, 0.0032768), (100, 0.0065536), (50, 0.0131072)],
)
def test_pycls_weights_are_the_authors_after_a_copying_warm_up(epochs: int, alpha: float) -> None:
    def weight(epoch: int, step_of_epoch: int) -> float:
        return ema_alpha(
            epoch * 625 + step_of_epoch + 1,
            EmaConfig(kind="pycls"),
            PYCLS,
            epochs=epochs,
            steps_per_epoch=625,
            batch=2048,
        )

    assert weight(4, 0) == weight(4, 32) == weight(4, 608) == 1.0
    assert weight(4, 1) == weight(5, 31) == weight(5, 624) == 0.0, "only every 32nd step"
    assert weight(5, 0) == weight(5, 32) == weight(epochs - 1, 608) == pytest.approx(alpha)


def test_the_authors_horizon_on_imagenet_is_the_same_share_of_any_run() -> None:
    """7.8 %: where the default fraction comes from."""
    for epochs, batch in ((50, 2048), (400, 2048), (100, 512)):
        steps = 1_281_167 // batch
        horizon = horizon_steps(
            EmaConfig(kind="pycls"), epochs=epochs, steps_per_epoch=steps, batch=batch
        )
        assert horizon / (epochs * steps) == pytest.approx(0.078, abs=0.002)


def test_pycls_on_few_images_is_refused_with_the_reason_and_two_ways_out() -> None:
    with pytest.raises(ConfigError, match="the run has 230") as caught:
        check_ema(EmaConfig(kind="pycls"), epochs=10, steps_per_epoch=23, batch=128)
    assert "5,615 steps" in caught.value.message  # one update an epoch of 23 steps
    assert "--optim.ema.kind fraction" in str(caught.value.hint)
    suggested = float(str(caught.value.hint).split()[-1].rstrip("."))
    check_ema(EmaConfig(kind="pycls", alpha=suggested), epochs=10, steps_per_epoch=23, batch=128)


def test_pycls_is_refused_from_half_the_run_on() -> None:
    run = {"epochs": 100, "steps_per_epoch": 320, "batch": 100}  # 32,000 images an epoch
    check_ema(EmaConfig(kind="pycls", alpha=2.001 / 32_000), **run)
    with pytest.raises(ConfigError, match="exceeds half the run"):
        check_ema(EmaConfig(kind="pycls", alpha=1.999 / 32_000), **run)
    check_ema(EmaConfig(horizon=1.0), **run)
    check_ema(EmaConfig(kind="none"), **run)


def test_a_fraction_is_a_running_mean_first_and_then_has_its_horizon() -> None:
    run = {"epochs": 10, "steps_per_epoch": 100, "batch": 8}
    ema = EmaConfig(horizon=0.05)
    assert horizon_steps(ema, **run) == 50
    weights = [ema_alpha(s, ema, CosineConfig(), **run) for s in range(1, 1001)]
    assert weights[:50] == [1 / s for s in range(1, 51)]
    assert weights[50:] == [1 / 50] * 950


def test_the_documented_shares_of_the_default_average_hold() -> None:
    run = {"epochs": 100, "steps_per_epoch": 100, "batch": 8}
    share, shares = 1.0, [0.0] * 10_000
    for step in range(10_000, 0, -1):
        alpha = ema_alpha(step, EmaConfig(), CosineConfig(), **run)
        shares[step - 1] = alpha * share
        share *= 1 - alpha
    assert sum(shares) == pytest.approx(1.0)
    assert sum(shares[-555:]) == pytest.approx(0.5, abs=0.001)
    assert sum(shares[-2400:]) == pytest.approx(0.95, abs=0.001)
    assert sum(shares[:800]) == pytest.approx(1e-5, abs=2e-6)


def test_a_run_too_short_for_its_horizon_keeps_the_last_weights() -> None:
    run = {"epochs": 1, "steps_per_epoch": 5, "batch": 8}
    assert horizon_steps(EmaConfig(), **run) == 1
    assert ema_alpha(5, EmaConfig(), CosineConfig(), **run) == 1.0
