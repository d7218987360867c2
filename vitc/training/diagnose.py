"""Why was a step not finite? The step is repeated, and the first bad number is looked for.

The order of the questions: are its images finite; where in the forward pass is the first number
that is not; does another batch give finite numbers with the same weights; else, which gradient is
not finite? The model is left as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vitc.data.loader import MicroBatch, Provider, open_train
from vitc.data.pixels import requests
from vitc.errors import VitcError
from vitc.models.vit import Attention
from vitc.training.build import Setup
from vitc.training.divergence import EXPLODED, EXPLODED_BY, LEAST, Cause, Finding, Watch
from vitc.training.step import micro_loss, ready_images
from vitc.wording import few, short

UNREPRODUCED = "not reproduced"  # in place of where
LARGE_WEIGHTS = 10.0  # root mean square; layers start below 1


def diagnose(
    setup: Setup,
    model: nn.Module,
    provider: Provider,
    watch: Watch,
    step: int,
    lr: float,
    seen: str,
) -> Finding:
    """The finding of step `step`, whose loss or gradient was not finite (`seen`: their values).

    `lr` is the learning rate that it took.

    `model` has the weights from before that step. Of several processes each looks at its own part.
    """
    try:
        micros, names = batch_of(setup, provider, step)
        others, _ = batch_of(setup, provider, step - 1 if step > 1 else step + 1)
        with as_before(model):
            return _found(setup, model, watch, step, lr, seen, micros, names, others)
    except VitcError as error:  # a loader that fails again is no reason to hide the first failure
        return Finding("unknown", step, "", f"{seen}; the step could not be repeated: {error}")


def _found(
    setup: Setup,
    model: nn.Module,
    watch: Watch,
    step: int,
    lr: float,
    seen: str,
    micros: Sequence[MicroBatch],
    names: Sequence[str],
    others: Sequence[MicroBatch],
) -> Finding:
    place = first_bad(setup, model, micros)
    exploded = exploded_since(watch, model, step)
    if exploded is not None:
        evidence = f"{seen} at step {step}, lr {lr:.3g}"
        return Finding("exploding lr", exploded, place, evidence)
    rows = [~ready_images(m, setup.settings).flatten(1).isfinite().all(1) for m in micros]
    broken = torch.cat(rows).tolist()
    if any(broken):
        images = [short(n, 60) for n, bad in zip(names, broken, strict=True) if bad]
        return Finding("poisoned batch", step, few(images, 3), f"{seen}; its pixels are not finite")
    if place and not first_bad(setup, model, others):
        images = [short(n, 60) for n in names]
        evidence = f"{seen}; with the same weights another batch is finite, this one not: {place}"
        return Finding("poisoned batch", step, few(images, 3), evidence)
    if place:
        cause: Cause = "attention overflow" if "attention" in place else "unknown"
        return Finding(cause, step, place, f"{seen}, in {setup.config.train.precision}")
    gradient = bad_gradient(setup, model, micros)
    if gradient:
        return Finding("NaN gradient", step, gradient, f"{seen}; the forward pass is finite")
    evidence = f"{seen}; the same step repeated is finite: a fault of the machine, or a race"
    return Finding("NaN gradient", step, UNREPRODUCED, evidence)


def batch_of(setup: Setup, provider: Provider, step: int) -> tuple[list[MicroBatch], Sequence[str]]:
    """The micro-batches of the run's step `step` (from 1) in this process; names of the images."""
    data, config, plan = setup.data, setup.config.data, setup.plan
    with open_train(data, config, plan, setup.device, step - 1, step, provider) as batches:
        micros = next(iter(batches))
        asked = requests(plan, config, batches.split.labels, step - 1, step)
        names = [batches.split.names[int(i)] for request in asked for i in request.indices]
    return micros, names


@contextlib.contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Afterwards the buffers, which a forward pass in training mode changes, are as they were, and
    so are torch's generators; there are no gradients."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, b in model.named_buffers():
                b.copy_(buffers[name])


def exploded_since(watch: Watch, model: nn.Module, step: int) -> int | None:
    """The step from which the loss was far above chance shortly before this one; this step, where
    most weights are too large for any loss; None: neither."""
    if watch.spike:
        return int(watch.spike[0])
    limit = max(EXPLODED * watch.chance, watch.chance + EXPLODED_BY)
    recent = watch.losses[-LEAST:]
    high = [step - len(recent) + i for i, loss in enumerate(recent) if loss > limit]
    if high:
        return high[0]
    matrices = [p.detach().float() for p in model.parameters() if p.ndim > 1]
    sizes = [float(p.square().mean().sqrt()) for p in matrices]
    large = sum(not size <= LARGE_WEIGHTS for size in sizes)
    return step if 2 * large > len(sizes) else None


def first_bad(setup: Setup, model: nn.Module, micros: Sequence[MicroBatch]) -> str:
    """The first place of a forward pass with a number that is not finite; "": there is none."""
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def see(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return see

    def look_at_logits(name: str) -> Callable[[Attention, tuple[Tensor, ...]], None]:
        def see(module: Attention, args: tuple[Tensor, ...]) -> None:
            q, k, _ = module.heads(args[0])
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            if not found and not bool(logits.isfinite().all()):
                found.append(name)

        return see

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Attention):
                block = name.removeprefix("blocks.").removesuffix(".attn")
                place = f"block {block} attention logits"
                hooks.callback(module.register_forward_pre_hook(look_at_logits(place)).remove)
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(look(name)).remove)
        for micro in micros:
            loss = micro_loss(model, micro, setup.settings)
            if not found and not bool(loss.isfinite()):
                found.append("loss")
    return found[0] if found else ""


def bad_gradient(setup: Setup, model: nn.Module, micros: Sequence[MicroBatch]) -> str:
    """The parameter nearest to the loss with a gradient that is not finite; "": there is none."""
    model.zero_grad(set_to_none=True)
    for micro in micros:
        micro_loss(model, micro, setup.settings).backward()  # type: ignore[no-untyped-call]
    bad = [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    return bad[-1] if bad else ""
