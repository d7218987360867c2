"""Is a run going bad: what, since which step, where, and what helps? Free of torch.

`Watch` sees the loss and gradient norm of every step and the vitals of every 50th, as floats, and
returns findings. Its state is plain JSON and part of every checkpoint, so a resumed run finds what
the undisturbed one would have found, at the same step.

A finding is *fatal* where the step has no usable result: loss or gradient are not finite. All
others are warnings, unless `train.on_divergence` is rollback: then a poisoned batch and an
exploding learning rate are undone too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Cause = Literal[
    "NaN gradient",
    "exploding lr",
    "poisoned batch",
    "attention overflow",
    "dead BatchNorm",
    "collapsed output",
    "not learning",
    "unknown",
]

REMEDIES: dict[Cause, str] = {
    "NaN gradient": "Look at the operation named above (a division, a root, a logarithm near 0); "
    "train in fp32 (--train.precision fp32), or skip such steps: --train.on_divergence rollback.",
    "exploding lr": "Lower --optim.lr, lengthen --optim.schedule.warmup_epochs, or set "
    "--optim.clip_norm 1.",
    "poisoned batch": "Check the images: vitc data check; --train.on_divergence rollback skips the "
    "batch, --optim.clip_norm 1 limits what one batch can do.",
    "attention overflow": "Use --model.qk_norm true, lower --optim.lr, or train in fp32 "
    "(--train.precision fp32).",
    "dead BatchNorm": "Lower --optim.lr or lengthen --optim.schedule.warmup_epochs; start again "
    "from an earlier checkpoint: a dead layer does not recover.",
    "collapsed output": "Lower --optim.lr, lengthen --optim.schedule.warmup_epochs, or lower "
    "--optim.weight_decay; start again from an earlier checkpoint.",
    "not learning": "Try another --optim.lr, a longer --optim.schedule.warmup_epochs, and check "
    "the labels: vitc data check.",
    "unknown": "Lower --optim.lr, lengthen --optim.schedule.warmup_epochs, or set "
    "--optim.clip_norm 1.",
}
UNDONE = ("poisoned batch", "exploding lr")  # finite, and yet rolled back where that is asked for

HISTORY = 100  # steps whose median is what is usual
LEAST = 20  # of them, before anything is judged
SPIKE = 100.0  # times the usual gradient norm
SPIKE_LOSS = 3.0  # times the usual loss
CALM = 3  # steps after a spike: usual again, and it was the batch
EXPLODED = 3.0  # times the loss at chance, and at least
EXPLODED_BY = 5.0  # nats above it
SUSTAINED = 20  # steps in a row
CHANCE_STEPS = 200  # after the warm-up, whose mean loss is at chance
CHANCE = 0.998  # of the loss of answering the classes' shares
DEAD_VARIANCE = 1e-7  # of a BatchNorm's input; its epsilon is 1e-5
ALIKE = 1e-3  # spread of the logits over images, relative to their size
LARGE_LOGIT = 1e4  # of attention: bf16 then rounds to the next 64, and one key takes all


@dataclass(frozen=True)
class Finding:
    """What is wrong with a run; `step`: the first that was bad."""

    cause: Cause
    step: int
    where: str
    evidence: str

    @property
    def remedy(self) -> str:
        return REMEDIES[self.cause]

    @property
    def text(self) -> str:
        """`exploding lr since step 41 (block 3 attention logits): loss 812, chance is 2.30`."""
        where = f" ({self.where})" if self.where else ""
        return f"{self.cause} since step {self.step}{where}: {self.evidence}"


@dataclass
class Watch:
    """Findings from the numbers of a run's steps, in order.

    chance: loss of answering every image with the classes' shares; warmup: planned steps of the
    warm-up; norm_names: the BatchNorms, in the order of `norm_variance` of the vitals.

    `position` of a step: how many planned steps are covered with it; None: as many as were taken.
    """

    chance: float
    warmup: int = 0
    norm_names: Sequence[str] = ()
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    after_warmup: list[float] = field(default_factory=list)
    above: int = 0
    """Steps in a row with an exploded loss."""
    spike: list[float] = field(default_factory=list)
    """A spike that is not yet judged: its step, loss, gradient norm, what is usual, calm steps."""
    alike: int = 0
    """Vitals in a row with the same output for all images."""
    reported: list[str] = field(default_factory=list)
    """What was found and still holds: it is reported once."""

    KEPT = ("losses", "norms", "after_warmup", "above", "spike", "alike", "reported")

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in self.KEPT}

    def resume(self, state: Mapping[str, Any]) -> None:
        for name in self.KEPT:
            if name in state:
                value = state[name]
                setattr(self, name, list(value) if isinstance(value, list) else value)

    def observe(
        self, step: int, loss: float, grad_norm: float, position: float | None = None
    ) -> list[Finding]:
        """The findings after a step with finite values."""
        found = [*self._exploded(step, loss, grad_norm), *self._spiked(step, loss, grad_norm)]
        if not self.spike:
            self.losses = [*self.losses[1 - HISTORY :], loss]
            self.norms = [*self.norms[1 - HISTORY :], grad_norm]
        if (step if position is None else position) > self.warmup:
            self.after_warmup = [*self.after_warmup[1 - CHANCE_STEPS :], loss]
        line = CHANCE * self.chance
        if loss < line or len(self.after_warmup) < CHANCE_STEPS or "exploding lr" in self.reported:
            return found
        mean = statistics.fmean(self.after_warmup)
        evidence = (
            f"the mean loss of {CHANCE_STEPS} steps after the warm-up is {mean:.3f}, at chance "
            f"({self.chance:.3f})"
        )
        since = step - CHANCE_STEPS + 1
        return found + self._once(mean >= line, Finding("not learning", since, "", evidence))

    def _exploded(self, step: int, loss: float, grad_norm: float) -> list[Finding]:
        high = loss > max(EXPLODED * self.chance, self.chance + EXPLODED_BY)
        self.above = self.above + 1 if high else 0
        if not high and "exploding lr" in self.reported:
            self.reported.remove("exploding lr")
        if self.above < SUSTAINED:
            return []
        since = step - self.above + 1
        evidence = (
            f"the loss is {loss:.4g} after {self.above} steps far above chance "
            f"({self.chance:.3g}), the gradient norm {grad_norm:.3g}"
        )
        return self._once(True, Finding("exploding lr", since, "", evidence))

    def _spiked(self, step: int, loss: float, grad_norm: float) -> list[Finding]:
        """A poisoned batch: loss and gradient jump for one step, and are as usual after it."""
        if self.spike:
            first, spiked_loss, spiked_norm, usual, calm = self.spike
            if grad_norm > 0.1 * SPIKE * usual:  # not usual again: not the batch alone
                self.spike = []
                return []
            self.spike[-1] = calm + 1
            if calm + 1 < CALM:
                return []
            self.spike = []
            evidence = (
                f"loss {spiked_loss:.4g} and gradient norm {spiked_norm:.3g}, "
                f"{spiked_norm / usual:,.0f} times the usual {usual:.3g}, and usual again after it"
            )
            return [Finding("poisoned batch", round(first), "", evidence)]
        if len(self.norms) >= LEAST and loss > self.chance and self.above <= 1:
            usual = max(statistics.median(self.norms), 1e-12)
            jump = grad_norm > SPIKE * usual
            if jump and loss > SPIKE_LOSS * statistics.median(self.losses):
                self.spike = [float(step), loss, grad_norm, usual, 0.0]
        return []

    def _once(self, holds: bool, finding: Finding) -> list[Finding]:
        """The finding, if it holds and was not reported since it began to."""
        if not holds or finding.cause in self.reported:
            return []
        self.reported.append(finding.cause)
        return [finding]

    def inspect(
        self, step: int, vitals: Mapping[str, Any], position: float | None = None
    ) -> list[Finding]:
        """The findings in the vitals of a step (see `vitc.training.vitals`)."""
        variances = vitals.get("norm_variance", [])
        dead = [n for n, v in zip(self.norm_names, variances, strict=False) if v < DEAD_VARIANCE]
        found = self._once(
            bool(dead),
            Finding(
                "dead BatchNorm",
                step,
                ", ".join(dead[:3]),
                f"the variance of its input is below {DEAD_VARIANCE:g}: every image gives the same",
            ),
        )
        logits = vitals.get("attention_logit", [])
        largest = max(logits, default=0.0, key=lambda v: v if math.isfinite(v) else math.inf)
        large = not largest <= LARGE_LOGIT
        found += self._once(
            large,
            Finding(
                "attention overflow",
                step,
                f"block {logits.index(largest)} attention logits" if large else "",
                f"the largest attention logit is {largest:.3g} (allowed: {LARGE_LOGIT:g})",
            ),
        )
        recent = self.losses[-LEAST:]
        at_chance = len(recent) == LEAST and statistics.fmean(recent) > 0.98 * self.chance
        spread = vitals.get("logit_spread", 1.0)
        warm = (step if position is None else position) > self.warmup
        self.alike = self.alike + 1 if spread < ALIKE and at_chance and warm else 0
        found += self._once(
            self.alike >= 2,
            Finding(
                "collapsed output",
                step,
                "head",
                f"the logits of different images agree to {spread:.1g} of their size, the loss is "
                f"at chance ({self.chance:.3g})",
            ),
        )
        return found
