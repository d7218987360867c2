"""What changes over a run as closed forms of the step: the learning rate and the EMA's weight.

No state and no torch: a resumed run, a plot and a configuration check ask the same functions.
`step` is always the number of finished updates, from 0 at the start to epochs * steps_per_epoch.
"""

from __future__ import annotations

from math import ceil, cos, pi

from vitc.errors import ConfigError
from vitc.optim.config import EmaConfig, ScheduleConfig

# ---------------------------------------------------------------------------- learning rate


def warmup_epochs(schedule: ScheduleConfig, epochs: int) -> float:
    """Length of the warm-up: as set, else the smaller of 5 epochs (the paper's) and 10 %."""
    if schedule.warmup_epochs is not None:
        return schedule.warmup_epochs
    return min(5.0, 0.1 * epochs)


def warmup_steps(schedule: ScheduleConfig, epochs: int, steps_per_epoch: int) -> int:
    """The step at which `per="step"` reaches the peak; always one that the run takes."""
    steps = round(warmup_epochs(schedule, epochs) * steps_per_epoch)
    return min(steps, epochs * steps_per_epoch - 1)


def lr_at(
    step: int, *, peak: float, schedule: ScheduleConfig, epochs: int, steps_per_epoch: int
) -> float:
    """Learning rate of the update that follows `step` finished ones; at the run's end the floor.

    `per="step"`: linear from `warmup_start * peak` at step 0 to exactly `peak` at the whole step
    W = `warmup_steps(...)`, then half a cosine over the *remaining* steps down to `floor * peak`.
    The cosine starts where the warm-up ends, so that the rate asked for is the rate reached; in
    schedules that decay during the warm-up it never is (huggingface/pytorch-image-models#1544).

    `per="epoch"`: the authors' code (facebookresearch/pycls, core/optimizer.py), constant within
    an epoch e: half a cosine over the *whole* run, times `warmup_start + (1 - warmup_start) * e /
    warmup_epochs` while e < warmup_epochs. Its peak is a little below `peak` (0.04 % at the
    paper's 5 of 400 epochs).
    """
    total = epochs * steps_per_epoch
    assert 0 <= step <= total, f"step {step} is outside the run's 0..{total}"
    if schedule.per == "epoch":
        epoch = step // steps_per_epoch
        warmup = warmup_epochs(schedule, epochs)
        ramp = _line(epoch / warmup, schedule.warmup_start) if epoch < warmup else 1.0
        return peak * ramp * _cosine(epoch / epochs, schedule.floor)
    warm = warmup_steps(schedule, epochs, steps_per_epoch)
    if step < warm:
        return peak * _line(step / warm, schedule.warmup_start)
    return peak * _cosine((step - warm) / (total - warm), schedule.floor)


def _line(progress: float, start: float) -> float:
    """From `start` at progress 0 to 1 at progress 1."""
    return start + (1 - start) * progress


def _cosine(progress: float, floor: float) -> float:
    """Half a period: 1 at progress 0, `floor` at progress 1."""
    return floor + (1 - floor) * 0.5 * (1 + cos(pi * progress))


# ---------------------------------------------------------------------------- weight average


def ema_alpha(
    step: int,
    ema: EmaConfig,
    schedule: ScheduleConfig,
    *,
    epochs: int,
    steps_per_epoch: int,
    batch: int,
) -> float:
    """Weight of the model after `step` >= 1 updates in the average; 0: left out, 1: a copy.

    `fraction`: max(1/h, 1/step) with h = `horizon_steps(...)`: the plain mean of all models so
    far until step h, then an exponential average with decay 1 - 1/h. At the end of a run of T
    steps the model of i steps ago weighs (1 - 1/h)^i / h: with the default h = 0.08 T half the
    weight lies on the last 5.5 % of the run, 95 % on the last 24 %, 0.001 % on the first h steps.

    `pycls`: facebookresearch/pycls, core/net.py `update_model_ema`: at every `period`-th step of
    an epoch, its first included, min(1, alpha * batch / epochs * period); during the warm-up
    epochs a copy.
    """
    assert 1 <= step <= epochs * steps_per_epoch
    if ema.kind == "none":
        return 0.0
    if ema.kind == "fraction":
        horizon = horizon_steps(ema, epochs=epochs, steps_per_epoch=steps_per_epoch, batch=batch)
        return max(1 / horizon, 1 / step)
    epoch, step_of_epoch = divmod(step - 1, steps_per_epoch)
    if step_of_epoch % ema.period:
        return 0.0
    return 1.0 if epoch < warmup_epochs(schedule, epochs) else _pycls_alpha(ema, epochs, batch)


def horizon_steps(ema: EmaConfig, *, epochs: int, steps_per_epoch: int, batch: int) -> float:
    """How many steps the average reaches back, 1 / (1 - decay per step); 1: the last model alone.

    The authors' alpha of 1e-5 gives 1 / (1e-5 * 1.28 million images) = 7.8 % of any run on
    ImageNet, whatever its batch and epochs; the default fraction keeps that for every data set.
    """
    if ema.kind == "none":
        return 1.0
    if ema.kind == "fraction":
        return max(1.0, ema.horizon * epochs * steps_per_epoch)
    # The authors count steps within the epoch, so an epoch shorter than a period updates once.
    steps_per_update = steps_per_epoch / ceil(steps_per_epoch / ema.period)
    return steps_per_update / _pycls_alpha(ema, epochs, batch)


def _pycls_alpha(ema: EmaConfig, epochs: int, batch: int) -> float:
    return min(1.0, ema.alpha * batch / epochs * ema.period)


def check_ema(ema: EmaConfig, *, epochs: int, steps_per_epoch: int, batch: int) -> None:
    """Refuse an average that would end the run still made of its beginning.

    Only `pycls` can do that: its alpha is a constant tuned to ImageNet. Raises ConfigError where
    its horizon exceeds half the run, with the reason and the two ways out.
    """
    if ema.kind != "pycls":
        return
    horizon = horizon_steps(ema, epochs=epochs, steps_per_epoch=steps_per_epoch, batch=batch)
    total = epochs * steps_per_epoch
    if horizon <= total / 2:
        return
    images = batch * steps_per_epoch
    raise ConfigError(
        f"optim.ema.kind 'pycls' with optim.ema.alpha {ema.alpha:g} averages over "
        f"{horizon:,.0f} steps, but the run has {total:,}: at its end the average would still be "
        f"largely the end of the warm-up. The authors' formula is tuned to ImageNet, where alpha "
        f"* images of an epoch is 12.8; here it is {ema.alpha * images:.2g}, and below about 2 "
        f"the horizon exceeds half the run.",
        "Use --optim.ema.kind fraction, which averages over 8 % of any run, or "
        f"--optim.ema.alpha {12.8 / images:.1e}.",
    )
