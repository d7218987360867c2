"""How is a trained model's forward pass made cheaper? BatchNorms become part of convolutions."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitc.models.stems import ConvNormAct


def folded(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, each BatchNorm folded into the convolution before it.

    In the stems and CNNs of this library and in any nn.Sequential; elsewhere it stays. The copy
    cannot be trained.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        names: list[tuple[str, str]] = []
        if isinstance(module, ConvNormAct):
            names = [("conv", "norm")]
        elif isinstance(module, nn.Sequential):
            children = [name for name, _ in module.named_children()]
            names = list(itertools.pairwise(children))
        for before, after in names:
            conv, norm = getattr(module, before), getattr(module, after)
            foldable = isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
            if type(conv) is nn.Conv2d and foldable:
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return model.requires_grad_(False)
