"""Which parameters are decayed, and at which rate is each trained? The optimizer over a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from vitc.errors import ConfigError
from vitc.optim.config import OptimConfig
from vitc.optim.muon import Joined, Muon

WEIGHTS, HIDDEN, EXEMPT = "weights", "hidden matrices", "norms and biases"  # names of groups
LINEAR = (nn.Linear, _ConvNd, nn.MultiheadAttention)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: Batch- and InstanceNorm


class NoHiddenMatrices(ConfigError):
    """The optimizer is for hidden weight matrices, and none is trained."""


def decay_groups(model: nn.Module) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """Trainable parameters by name: (decayed, exempt). Together all of them, each once.

    The paper decays neither the gains of normalisation layers nor any bias "anywhere in the
    model" (section 5.4). Read here by ownership and shape, never by a parameter's path: exempt is
    what a normalisation module owns, what is some module's `bias`, and every vector or scalar -
    which covers `nn.MultiheadAttention`'s in_proj_bias, and norms, layer scales and the like that
    torch does not know. pos_embed (1, N, D) and cls_token (1, 1, D) are decayed, as in pycls.
    A parameter with several owners is exempt if any of them makes it so; it appears under its
    first name. Frozen parameters are in neither.
    """
    spared = {
        p
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or name == "bias" or p.ndim <= 1
    }
    decayed: dict[str, Parameter] = {}
    exempt: dict[str, Parameter] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            (exempt if p in spared else decayed)[name] = p
    return decayed, exempt


def hidden_matrices(model: nn.Module) -> set[Parameter]:
    """The weights that map features to features: of linear layers and convolutions, but not of the
    first, which sees the image, of the last, the classifier, and of depthwise convolutions, which
    map each channel to itself. By the modules' types and order, as `decay_groups`."""
    found: dict[Parameter, bool] = {}  # whether it maps channels to channels
    for module in model.modules():
        if isinstance(module, LINEAR):
            for p in module.parameters(recurse=False):
                if p.ndim >= 2:
                    found.setdefault(p, min(p.shape[:2]) > 1)
    inner = list(found.items())[1:-1]
    return {p for p, mixes in inner if mixes}


def parameter_groups(config: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    """All trainable parameters of `model` as an optimizer's groups, each with its `name`, its
    `weight_decay` and, with config.layer_decay below 1, its `lr_scale`.

    `WEIGHTS` are decayed by config.weight_decay, `EXEMPT` are not (`decay_groups`); an optimizer
    that wants it has `HIDDEN` apart. With config.layer_decay there are such groups for each layer.
    Raises ConfigError: no parameter to train, none of those that the optimizer is for, or
    layer_decay for a model that does not list its layers.
    """
    decayed, exempt = decay_groups(model)
    if not decayed and not exempt:
        raise ConfigError("The model has no trainable parameter.", "Set requires_grad on some.")
    weights = list(decayed.values())
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay, "name": WEIGHTS},
        {"params": list(exempt.values()), "weight_decay": 0.0, "name": EXEMPT},
    ]
    if config.hidden_momentum is not None:
        hidden = hidden_matrices(model)
        groups[0]["params"] = [p for p in weights if p not in hidden]
        apart = [p for p in weights if p in hidden]
        if not apart:
            raise NoHiddenMatrices(
                "This optimizer is for hidden weight matrices, and none is trained.",
                "Use --optim adamw.",
            )
        groups.insert(0, {**groups[0], "params": apart, "name": HIDDEN})
    if config.layer_decay < 1:
        by_name = lr_scales(model, config.layer_decay)
        scales = {p: by_name[name] for name, p in model.named_parameters()}
        groups = [
            {**group, "params": members, "lr_scale": scale}
            for scale in sorted(set(scales.values()))
            for group in groups
            if (members := [p for p in group["params"] if scales[p] == scale])
        ]
    return groups


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """The optimizer of `config` over all trainable parameters of `model` (`parameter_groups`).

    The learning rate is config.lr as written until the first `set_lr`, which the loop calls at
    every step. Raises ConfigError, as `parameter_groups` does.
    """
    groups = parameter_groups(config, model)
    trained = [p for group in groups for p in group["params"]]
    # Fused: one kernel a group. On one CPU core a step over 60 small tensors took 0.4 ms against
    # 2.0 (AdamW) and 0.3 against 0.9 (SGD) unfused. The CPU kernels walk parameter, gradient and
    # state in storage order and do not look at strides: the moments of a channels_last weight
    # that come back contiguous from disk are mixed up without an error (seen in torch 2.13), so
    # whoever restores state restores its strides.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    hidden = [group for group in groups if group["name"] == HIDDEN]
    others = [group for group in groups if group["name"] != HIDDEN]
    optimizer = config.build(others, fused)
    if config.hidden_momentum is not None:
        muon = Muon(hidden, config.lr, config.hidden_momentum)
        optimizer = Joined(groups, (muon, optimizer))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    return optimizer


def lr_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by: layer_decay ** (layers above it).

    The layers are the model's own `layers()`: lists of parameters' names from the input to the
    head, with factor 1. Raises ConfigError: the model has no `layers()`.
    """
    listed: Callable[[], list[list[str]]] | None = getattr(model, "layers", None)
    if not callable(listed):
        raise ConfigError(
            f"optim.layer_decay {layer_decay} needs a model with a method layers(); "
            f"{type(model).__name__} has none.",
            "Use a model of the zoo, or --optim.layer_decay 1.",
        )
    layers = listed()
    last = len(layers) - 1
    return {name: layer_decay ** (last - i) for i, names in enumerate(layers) for name in names}


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group the learning rate of the coming step, times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
