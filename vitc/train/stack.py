"""M models of one architecture as one: stacked weights, one forward and backward, M updates.

Every trained number lies in one matrix (M, P), a row a member, so that an optimizer's update, a
clipping or an average is a handful of operations whatever the number of members and of layers.
Columns hold the decayed parameters first; each parameter starts at a multiple of 8 numbers, which
fast matrix products want, and what lies between is 0 and stays 0. Arithmetic is that of a single
run's step (`step`, `optim`), operation by operation.

Shape letters: M members, P trained numbers of a member, B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from vitc.data.mixing import soft_cross_entropy
from vitc.models.vit import Attention
from vitc.optim.config import AdamWConfig, OptimConfig, SGDConfig
from vitc.optim.optimizers import decay_groups, lr_scales, set_lr
from vitc.train.device import autocast
from vitc.train.freeze import train_mode
from vitc.train.state import TrainState

ALIGNED = 8  # numbers: 32 bytes of float32
SLOTS = {AdamWConfig: ("exp_avg", "exp_avg_sq"), SGDConfig: ("momentum_buffer",)}


@dataclass(frozen=True, eq=False)
class StackedBatch:
    """A micro-batch of every member, ready for the model, on the device.

    images: float (M, B, C, H, W); targets: float32 (M, B, K); drop_path: float32 (M, 2 depth, B)
    or None. `shared`: all members see the same, and the tensors have no first dimension.
    """

    images: Tensor
    targets: Tensor
    drop_path: Tensor | None
    shared: bool


class Stack:
    """M members: weights, BatchNorm statistics, optimizer state and averages of the weights.

    Made from M states of single runs at the same step, and given back into such states, in any
    of which a single run goes on. `optims` are of one class; what may differ is every number in
    them. A member whose loss or gradient was not finite in a step takes neither that nor any later
    update: it is dead (`alive`, bool (M,) on the device, which no step reads).
    """

    def __init__(
        self,
        states: Sequence[TrainState],
        optims: Sequence[OptimConfig],
        device: torch.device,
        *,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        models = [s.model for s in states]
        averages = [s.ema.module for s in states if s.ema is not None]
        self.optims, self.device, self.precision = list(optims), device, precision
        self.steps = states[0].step
        self.lrs: list[float] = []  # of the last step
        self.template = _template(models[0])
        # autocast does not see through vmap to a linear layer's bias, and a float32 one would make
        # all that follows float32
        self.low = {
            f"{name}.bias" for name, module in self.template.named_modules()
            if precision == "bf16" and isinstance(module, nn.Linear)
        }  # fmt: skip
        decayed, exempt = decay_groups(models[0])
        self.places = _places({**decayed, **exempt})
        self.decayed_columns = sum(_padded(p.numel()) for p in decayed.values())
        columns = sum(_padded(p.numel()) for p in self.places.values())

        self.flat, self.frozen, self.buffers = self._stacked(models, columns)
        self.average: Tensor | None = None
        self.average_buffers: dict[str, Tensor] = {}
        if averages:
            self.average, _, self.average_buffers = self._stacked(averages, columns)
        self.slots = {key: torch.zeros_like(self.flat) for key in SLOTS[type(optims[0])]}
        self._fill_slots(states)
        self.lr_scale = self._layer_scale(models[0])
        self.alive = torch.ones(len(states), dtype=torch.bool, device=device)
        self.compiled = compiled
        self._bind()

    def __len__(self) -> int:
        return len(self.optims)

    # -- one step --------------------------------------------------------------------------------

    def step(self, micros: Sequence[StackedBatch], lrs: Sequence[float]) -> Tensor:
        """Advance every living member by one step; float (2, M): losses and gradient norms.

        `lrs`: each member's learning rate. What is returned stays on the device, and is as of
        `train_step`: the mean loss of the micro-batches, the norm before clipping.
        """
        train_mode(self.template)
        self.grad.zero_()
        norms = _norm_statistics(self.template, self.buffers)
        start = {n: b.clone() for n, b in norms.items()} if len(micros) > 1 else {}
        sums = {n: torch.zeros_like(b) for n, b in start.items()}
        losses = torch.zeros(len(self), device=self.device, dtype=self.flat.dtype)
        for micro in micros:
            for name, value in start.items():  # each micro-batch starts from the same statistics
                self.buffers[name].copy_(value)
            loss = self._losses(micro)
            self._backward(loss.sum() / len(micros))
            losses += loss.detach() / len(micros)
            for name in start:
                sums[name] += self.buffers[name]
        for name, total in sums.items():
            mean = total / len(micros) if total.is_floating_point() else start[name] + 1
            self.buffers[name].copy_(mean)

        grad_norms = torch.linalg.vector_norm(self.grad, dim=1)
        self.alive &= torch.isfinite(losses) & torch.isfinite(grad_norms)
        self.steps += 1
        self.lrs = list(lrs)
        self._update(self._clipped(grad_norms), lrs)
        return torch.stack([losses, grad_norms])

    def _losses(self, micro: StackedBatch) -> Tensor:
        """(M,): each member's mean cross-entropy over its micro-batch."""
        where = None if micro.shared else 0
        images = micro.images.to(self.flat.dtype)
        extra = () if micro.drop_path is None else (micro.drop_path,)
        with autocast(self.precision, self.device), sdpa_kernel(SDPBackend.MATH):
            forward = _forward(self.template, where, len(extra), self.compiled)
            logits = forward(self._values(self.leaves), self.buffers, images, *extra)
        losses: Tensor = torch.vmap(soft_cross_entropy, (0, where))(logits, micro.targets)
        return losses

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients to `grad`: of a sum over members, each gets that of its own loss."""
        gradients = torch.autograd.grad(loss, list(self.leaves.values()))
        for name, gradient in zip(self.leaves, gradients, strict=True):
            self.grad_views[name].add_(gradient)

    def _clipped(self, norms: Tensor) -> Tensor:
        """(M, P): the gradients, each member's scaled down to its own clip_norm; 0 for the dead."""
        limits = [o.clip_norm for o in self.optims]
        if any(limit is not None for limit in limits):
            most = self._numbers([float("inf") if c is None else c for c in limits])
            self.grad.mul_(torch.clamp(most / (norms[:, None] + 1e-6), max=1.0))
        return torch.where(self.alive[:, None], self.grad, 0.0)

    @torch.no_grad()
    def _update(self, grad: Tensor, lrs: Sequence[float]) -> None:
        """Each member's update by its own numbers; those of the dead are such that nothing moves.

        Scaling by 1 and adding 0 leaves a finite number as it is, to the bit.
        """
        update = _adamw if isinstance(self.optims[0], AdamWConfig) else _sgd
        update(self, grad, self._numbers(lrs, dead=0.0))

    def _numbers(self, values: Sequence[float], dead: float | None = None) -> Tensor:
        """(M, 1): a number of each member; `dead` is that of members that take no update."""
        host = torch.tensor(values, dtype=torch.float64).to(self.flat.dtype)
        column = host.to(self.device, non_blocking=self.device.type == "cuda")[:, None]
        return column if dead is None else torch.where(self.alive[:, None], column, dead)

    @torch.no_grad()
    def update_average(self, alphas: Sequence[float]) -> None:
        """Take the members as they stand into their averages; alphas as of `ema_alpha`."""
        if self.average is None or not any(alphas):
            return
        alpha = self._numbers(alphas, dead=0.0)
        self.average.lerp_(self.flat, alpha)
        takes = (alpha > 0)[:, 0]
        for name, held in self.average_buffers.items():
            new = self.buffers[name]
            if new.is_floating_point():
                held.lerp_(new, _like(alpha, new).to(new.dtype))
            else:
                held.copy_(torch.where(_like(takes[:, None], new), new, held))

    # -- evaluation ------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, images: Tensor, average: bool) -> Tensor:
        """(M, B, K) logits of every member, or of its average, in eval mode; images (B, C, H, W),
        the same for all."""
        flat = self.average if average else self.flat
        buffers = self.average_buffers if average else self.buffers
        assert flat is not None
        self.template.eval()
        with autocast(self.precision, self.device), sdpa_kernel(SDPBackend.MATH):
            # Not compiled: that would be once more, for another batch and mode.
            return _forward(self.template, None, 0, compiled=False)(
                self._values(self._views(flat)), buffers, images.to(self.flat.dtype)
            )

    # -- members come and go ---------------------------------------------------------------------

    @torch.no_grad()
    def give(self, member: int, state: TrainState) -> None:
        """Make `state`, of that member's architecture and optimizer, what the member is now."""
        values = {**self._views(self.flat), **self.frozen}
        _fill_model(state.model, values, self.buffers, member)
        if state.ema is not None:
            assert self.average is not None
            averaged = {**self._views(self.average), **self.frozen}
            _fill_model(state.ema.module, averaged, self.average_buffers, member)
        state.step = self.steps
        if self.lrs:
            set_lr(state.optimizer, self.lrs[member])
        self._give_slots(member, state)

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        rows = torch.tensor(members, dtype=torch.int64, device=self.device)
        self.optims = [self.optims[m] for m in members]
        self.lrs = [self.lrs[m] for m in members] if self.lrs else []
        self.flat, self.alive = self.flat[rows], self.alive[rows]
        if self.average is not None:
            self.average = self.average[rows]
        for held in (self.frozen, self.buffers, self.average_buffers, self.slots):
            for name, tensor in held.items():
                held[name] = tensor[rows]
        self._bind()

    # -- tensors ---------------------------------------------------------------------------------

    def _stacked(
        self, models: Sequence[nn.Module], columns: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """(M, P) trained numbers; the frozen parameters and the buffers by name, (M, ...)."""
        parameters, buffers = stack_module_state(list(models))
        values = {n: t.detach().to(self.device) for n, t in parameters.items()}
        like = next(iter(values.values()))
        flat = torch.zeros(len(models), columns, dtype=like.dtype, device=self.device)
        for name, view in self._views(flat).items():
            view.copy_(values[name])
        frozen = {n: t for n, t in values.items() if n not in self.places}
        return flat, frozen, {n: t.to(self.device) for n, t in buffers.items()}

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """The trained parameters by name, (M, ...): views of the columns of `flat`."""
        found, start = {}, 0
        for name, place in self.places.items():
            columns = flat[:, start : start + place.numel()]
            found[name] = columns.view(len(flat), *place.shape)
            start += _padded(place.numel())
        return found

    def _values(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the forward pass takes: all parameters by name, (M, ...)."""
        both = {**trained, **self.frozen}
        return {n: v.to(torch.bfloat16) if n in self.low else v for n, v in both.items()}

    def _bind(self) -> None:
        """Leaves of the backward pass that share memory with `flat`, and the place of gradients."""
        self.leaves = {n: v.detach().requires_grad_() for n, v in self._views(self.flat).items()}
        self.grad = torch.zeros_like(self.flat)
        self.grad_views = self._views(self.grad)

    def _layer_scale(self, model: nn.Module) -> Tensor | None:
        """(1, P): what lr is multiplied by; None where it is the same for all layers."""
        if self.optims[0].layer_decay == 1:
            return None
        scales = lr_scales(model, self.optims[0].layer_decay)
        row = torch.ones_like(self.flat[:1])
        for name, view in self._views(row).items():
            view.fill_(scales[name])
        return row

    # -- the optimizer's state of single runs ----------------------------------------------------

    def _fill_slots(self, states: Sequence[TrainState]) -> None:
        views = {key: self._views(flat) for key, flat in self.slots.items()}
        for m, state in enumerate(states):
            for name, parameter in _trained(state).items():
                held = state.optimizer.state.get(parameter, {})
                for key in self.slots:
                    if isinstance(held.get(key), Tensor):
                        views[key][name][m].copy_(held[key])

    def _give_slots(self, member: int, state: TrainState) -> None:
        state.optimizer.state.clear()
        optim = self.optims[member]
        if self.steps == 0 or (isinstance(optim, SGDConfig) and optim.momentum == 0):
            return
        views = {key: self._views(flat) for key, flat in self.slots.items()}
        for name, parameter in _trained(state).items():
            entry = {key: views[key][name][member].to(parameter.device, copy=True) for key in views}
            if isinstance(optim, AdamWConfig):
                entry["step"] = torch.tensor(float(self.steps))
            state.optimizer.state[parameter] = entry


# -- the optimizers, as torch.optim's, for (M, P) -------------------------------------------------


def _adamw(stack: Stack, grad: Tensor, lr: Tensor) -> None:
    """Decoupled decay, moments, bias correction, update: the order of torch.optim.AdamW."""
    optims = [o for o in stack.optims if isinstance(o, AdamWConfig)]
    numbers, steps = stack._numbers, stack.steps
    lr = lr if stack.lr_scale is None else lr * stack.lr_scale
    decayed = stack.decayed_columns
    decay = numbers([o.weight_decay for o in optims])
    stack.flat[:, :decayed].mul_(1 - lr[:, :decayed] * decay)  # lr[:, :1] where it has one column
    first, second = stack.slots["exp_avg"], stack.slots["exp_avg_sq"]
    first.lerp_(grad, numbers([1 - o.betas[0] for o in optims], dead=0.0))
    second.mul_(numbers([o.betas[1] for o in optims], dead=1.0))
    second.add_(grad * grad * numbers([1 - o.betas[1] for o in optims], dead=0.0))
    root = numbers([(1 - o.betas[1] ** steps) ** 0.5 for o in optims])
    denominator = (second.sqrt() / root).add_(numbers([o.eps for o in optims]))
    stack.flat.sub_(first / denominator * (lr / numbers([1 - o.betas[0] ** steps for o in optims])))


def _sgd(stack: Stack, grad: Tensor, lr: Tensor) -> None:
    """Decay into the gradient, momentum, Nesterov's look ahead: the order of torch.optim.SGD."""
    optims = [o for o in stack.optims if isinstance(o, SGDConfig)]
    numbers, decayed = stack._numbers, stack.decayed_columns
    decay = numbers([o.weight_decay for o in optims], dead=0.0)
    grad[:, :decayed].add_(stack.flat[:, :decayed] * decay)
    momentum = stack.slots["momentum_buffer"]
    momentum.mul_(numbers([o.momentum for o in optims], dead=1.0)).add_(grad)
    if optims[0].nesterov:
        grad.add_(momentum * numbers([o.momentum for o in optims]))
    else:
        grad = momentum
    lr = lr if stack.lr_scale is None else lr * stack.lr_scale
    stack.flat.sub_(grad * lr)


# -- helpers --------------------------------------------------------------------------------------


Forward = Callable[..., Tensor]


@functools.lru_cache(maxsize=8)
def _forward(template: nn.Module, where: int | None, extra: int, compiled: bool) -> Forward:
    """All members' forward: (values, buffers, images, extra ...) -> (M, B, K).

    `where`: the dimension of images and extra tensors in which members differ, or None. Writes
    into BatchNorm's statistics.
    """

    def forward(
        values: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, *extra: Tensor
    ) -> Tensor:
        out: Tensor = functional_call(template, (values, buffers), (images, *extra))
        return out

    batched: Forward = torch.vmap(forward, (0, 0, where, *[where] * extra))
    if not compiled:
        return batched
    # every departure of a member is a new shape; past its limit the compiler gives up silently
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 64)
    return torch.compile(batched, dynamic=False)


def _template(model: nn.Module) -> nn.Module:
    """A copy without memory of its own, whose every operation can be batched over members.

    Fused attention cannot: under vmap it takes its inputs for ones that need no gradient, keeps
    nothing for the backward pass, and that fails on CUDA (on CPU it would run member by member).
    So attention is written out, and that of other libraries' models is held to its plain form
    (`sdpa_kernel` where the forward is called). BatchNorm's rule under vmap takes parameters of
    its input's dtype only, so its input is float32, in bf16 too.
    """
    template = copy.deepcopy(model).to("meta")
    for module in template.modules():
        if isinstance(module, Attention):
            module.kind = "explicit"
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_in_float32)
    return template


def _in_float32(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    (x,) = args
    return (x.float(),) if x.dtype in (torch.bfloat16, torch.float16) else None


def _padded(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def _places(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The shapes of the trained parameters, in the order of their columns."""
    return {name: torch.empty_like(p, device="meta") for name, p in parameters.items()}


def _like(column: Tensor, other: Tensor) -> Tensor:
    """(M, 1) with as many dimensions as `other` (M, ...)."""
    return column.view(len(column), *[1] * (other.ndim - 1))


def _norm_statistics(model: nn.Module, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The buffers of the BatchNorms that are in training mode."""
    owners = {n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}
    return {name: b for name, b in buffers.items() if name.rpartition(".")[0] in owners}


def _fill_model(
    model: nn.Module, values: Mapping[str, Tensor], buffers: Mapping[str, Tensor], member: int
) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name][member])
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name][member])


def _trained(state: TrainState) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer owns, by their names in the model."""
    optimizer: Optimizer = state.optimizer
    held = {p for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in state.model.named_parameters() if p in held}
