"""How is a trained model's forward pass made cheaper? BatchNorms become part of convolutions."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitc.models.stems import ConvNormAct


def folded(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, each BatchNorm folded into the convolution before it.

    In the stems and CNNs of this library and in any nn.Sequential; elsewhere it stays. The copy is
    not to be trained.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        names: list[tuple[str, str]] = []
        if isinstance(module, ConvNormAct):
            names = [("conv", "norm")]
        elif type(module).forward is nn.Sequential.forward:
            children = [name for name, _ in module.named_children()]
            names = list(itertools.pairwise(children))
        for before, after in names:
            conv, norm = getattr(module, before), getattr(module, after)
            # Of these classes alone: one derived from them may do more, as timm's with activation.
            exact = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d
            if exact and norm.running_var is not None:
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return model.requires_grad_(False)
