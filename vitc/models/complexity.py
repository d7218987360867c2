"""What does one image cost in a model? Counted from the operations the model dispatches.

The convention is pycls's (paper appendix D): per image; flops are multiply-adds of convolutions,
linear layers and matrix products, a bias one more per output; activations are the outputs of those
operations and of windowed pooling. Norms, activation functions, softmax, residual additions and
global pooling are free. Attention is q k^T and its product with v, fused or not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vitc.errors import ConfigError, VitcError
from vitc.models.zoo import create_model, patchify_twin


@dataclass(frozen=True)
class Complexity:
    """Cost of one image."""

    flops: int = 0
    """Multiply-adds."""
    params: int = 0
    """Numbers in the model's parameters, each shared one once."""
    activations: int = 0
    """Numbers in the outputs of convolutions, matrix products and windowed pooling."""

    def __add__(self, other: Complexity) -> Complexity:
        return Complexity(
            self.flops + other.flops,
            self.params + other.params,
            self.activations + other.activations,
        )


class Part(NamedTuple):
    """A part of a model, or several alike in a row: their name, number, and the cost of each."""

    name: str
    repeats: int
    each: Complexity


class TwinMatch(NamedTuple):
    """How well a ViT_C's flops match those of its ViT_P."""

    twin: str
    """Name of the ViT_P."""
    flops_mismatch: float
    """(ViT_C - ViT_P) / ViT_P of the whole models' flops."""


def complexity(
    model: nn.Module, img_size: int | tuple[int, int] | None = None, in_chans: int | None = None
) -> Complexity:
    """Flops, parameters and activations of `model` for one image.

    Works for any module that takes (1, in_chans, H, W), real or on the meta device: it runs in
    evaluation mode on tensors without data, and is left as it was. `img_size` and
    `in_chans` default to the model's attributes of these names; in_chans then to the channels of
    its first convolution. A model with `set_input_size` (ours, timm's) is counted as if set to
    another `img_size`. `x @ w + b` counts no bias, a linear layer does.
    Raises ConfigError: no size given or known, or a model that cannot run without data.
    """
    counts = _count(model, img_size, in_chans)
    return sum((cost for _, cost in counts), Complexity())


def parts(model: nn.Module, img_size: int | tuple[int, int] | None = None) -> list[Part]:
    """`complexity` part by part, in the model's order; they add up to the whole.

    A part is a child module, or a member of a child that is a list; members in a row that cost the
    same are one `Part`, e.g. "blocks.0-11". What costs nothing is left out. What belongs to no
    child (a ViT's cls_token and pos_embed) comes first, as "(own)".
    """
    found: list[Part] = []
    counts = _count(model, img_size, None)
    for (group, cost), row in groupby(counts, lambda c: (c[0].rpartition(".")[0], c[1])):
        names = [name for name, _ in row]
        if cost == Complexity():
            continue
        if group and len(names) > 1:
            last = names[-1].rpartition(".")[2]
            found.append(Part(f"{names[0]}-{last}", len(names), cost))
        else:
            found += [Part(name or "(own)", 1, cost) for name in names]
    return found


def twin_match(name: str) -> TwinMatch | None:
    """How well a model of the zoo matches its ViT_P; None for a model that has none."""
    twin = patchify_twin(name)
    if twin is None:
        return None
    with torch.device("meta"):
        ours, theirs = create_model(name), create_model(twin)
    return TwinMatch(twin, complexity(ours).flops / complexity(theirs).flops - 1)


# ------------------------------------------------------------------------------ running the model


def _count(
    model: nn.Module, img_size: int | tuple[int, int] | None, in_chans: int | None
) -> list[tuple[str, Complexity]]:
    """The cost of each part by its name, "" for what is in none, in the model's order."""
    twin = _without_data(getattr(model, "_orig_mod", model)).eval()  # torch.compile's wrapper
    size: Any = getattr(twin, "img_size", None) if img_size is None else img_size
    if size is None:
        raise ConfigError(
            f"The img_size of {type(twin).__name__} is unknown.", "Give img_size, e.g. 224."
        )
    size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    channels = _input_channels(twin, in_chans)
    dtype = next((p.dtype for p in twin.parameters() if p.dtype.is_floating_point), torch.float32)
    image = torch.empty(1, channels, *size, dtype=dtype, device="meta")
    with torch.inference_mode():
        if img_size is not None and hasattr(twin, "set_input_size"):
            with _Counter():
                twin.set_input_size(img_size=img_size)
        members: dict[str, nn.Module] = {}
        for name, child in twin.named_children():
            if isinstance(child, nn.ModuleList | nn.Sequential):
                members |= {f"{name}.{i}": member for i, member in child.named_children()}
            else:
                members[name] = child
        counter = _Counter()
        for name, module in members.items():
            enter, leave = partial(counter.enter, name), counter.leave
            module.register_forward_pre_hook(enter, prepend=True)
            module.register_forward_hook(leave)
        try:
            with counter:
                twin(image)
        except VitcError:
            raise
        except (RuntimeError, TypeError, ValueError) as e:
            raise ConfigError(
                f"{type(twin).__name__} cannot be counted at {size[0]}x{size[1]} with {channels} "
                f"channels: {e}",
                "Check that it takes that input. It is run on tensors without values, so what it "
                "computes may not depend on them.",
            ) from e
    seen: set[int] = set()
    params = {}
    for name, module in members.items():
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in seen}
        seen |= own.keys()
        params[name] = sum(own.values())
    params = {"": sum(p.numel() for p in twin.parameters() if id(p) not in seen)} | params
    flops, activations = counter.flops, counter.activations
    return [(n, Complexity(flops.get(n, 0), p, activations.get(n, 0))) for n, p in params.items()]


def _input_channels(model: nn.Module, in_chans: int | None) -> int:
    known = getattr(model, "in_chans", None) if in_chans is None else in_chans
    if known is not None:
        return int(known)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return module.in_channels
    raise ConfigError(
        f"{type(model).__name__} has no in_chans and no convolution to read it from.",
        "Give in_chans, e.g. 3.",
    )


def _without_data(model: nn.Module) -> Any:
    """A copy of the model with its parameters and buffers on the meta device; shared ones stay
    shared. The model itself is never run, so that nothing in it changes."""
    twins: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        twins[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, twins)


# --------------------------------------------------------------------------- counting operations


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operation on the meta device, and adds up those that cost something.

    Under inference mode operations arrive whole (`linear` with its bias, attention as one); those
    it has no rule for are taken apart as far as torch can.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack = [""]
        self.flops: dict[str, int] = {}
        self.activations: dict[str, int] = {}

    def enter(self, part: str, *_: Any) -> None:
        self.stack.append(part)

    def leave(self, *_: Any) -> None:
        self.stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Constants that the model holds or makes on a device join the image.
        args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs or {}))
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        if func.overloadpacket in FREE:  # torch would compute each of their steps
            return torch.empty_like(args[0])
        rule = RULES.get(func.overloadpacket)
        if rule is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if rule is not None:
            names = [argument.name for argument in func._schema.arguments]
            flops, activations = rule(dict(zip(names, args, strict=False)) | kwargs, out)
            part = self.stack[-1]
            self.flops[part] = self.flops.get(part, 0) + flops
            self.activations[part] = self.activations.get(part, 0) + activations
        return out


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    with torch.inference_mode(False):  # else torch refuses to see a view of it as one of `tensor`
        return tensor.to("meta")


Rule = Callable[[dict[str, Any], Any], tuple[int, int]]


def _product(left: str, bias: str | None = None) -> Rule:
    """A matrix product: every output element sums over the last dimension of `left`.

    A bias is one number per output feature; a whole matrix added (an attention mask) is free.
    """

    def rule(a: dict[str, Any], out: Tensor) -> tuple[int, int]:
        added = a.get(bias) if bias else None
        biased = added is not None and added.dim() == 1
        return out.numel() * (a[left].shape[-1] + biased), out.numel()

    return rule


def _convolution(a: dict[str, Any], out: Tensor) -> tuple[int, int]:
    # weight: (out, in / groups, *kernel); transposed: (in, out / groups, *kernel), where it is
    # every input element that is multiplied with all but the first dimension.
    per_element = a["weight"][0].numel()
    elements = a["input"].numel() if a["transposed"] else out.numel()
    bias = 0 if a.get("bias") is None else out.numel()
    return elements * per_element + bias, out.numel()


def _attention(a: dict[str, Any], out: Any) -> tuple[int, int]:
    """(..., L, E), (..., S, E), (..., S, V): L S (E + V) multiply-adds, L S scores and L V out."""
    query, value = a["query"], a["value"]
    rows = query[..., 0].numel()
    scores = rows * value.shape[-2]
    flops = scores * (query.shape[-1] + value.shape[-1])
    return flops, scores + rows * value.shape[-1]


def _pooling(_: dict[str, Any], out: Any) -> tuple[int, int]:
    return 0, (out if isinstance(out, Tensor) else out[0]).numel()


aten = torch.ops.aten
FREE = {aten.layer_norm, aten.batch_norm, aten.gelu, aten.relu, aten.silu, aten.sigmoid}
RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    aten.linear: _product("input", "bias"),
    aten.mm: _product("self"),
    aten.bmm: _product("self"),
    aten.mv: _product("self"),
    aten.dot: _product("self"),
    aten.vdot: _product("self"),
    aten.addmm: _product("mat1", "self"),
    aten.addmv: _product("mat", "self"),
    aten.baddbmm: _product("batch1", "self"),
    aten.scaled_dot_product_attention: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten.avg_pool2d: _pooling,
    aten.avg_pool3d: _pooling,
    aten.max_pool2d_with_indices: _pooling,
    aten.max_pool3d_with_indices: _pooling,
}
