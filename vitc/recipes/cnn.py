"""The paper's CNN baselines on ImageNet-1k.

Sources: arXiv 2106.14881 section 6 and Table 2 (SGD with lr 2.54 and weight decay 2.4e-5 for every
CNN), Table 4 left (AdamW for RegNetYs only, tuned at 50 epochs); the authors' configs on the branch
`vitconfigs` of facebookresearch/pycls, and its `dds_baselines` for EfficientNets (sizes of images
in training and test). Schedule, average and augmentation: as in `paper`.
Like there, no dropout and no drop connect, in EfficientNets too.

Rates are for batch 2048 and scale with `--train.batch`. Table 2 says how many images a step fit the
paper's 8 V100 of 32 GB; an eighth of that is `micro_batch` here, over which BatchNorm averages. How
the authors spread larger batches over GPUs they do not say. Times an epoch are on those 8 GPUs.
"""

from __future__ import annotations

from vitc.config import RunConfig
from vitc.recipes.imagenet import adamw, imagenet, sgd


def imagenet_resnet_50(optim: str | None = None) -> RunConfig:
    """ResNet-50 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD); the paper gives no rate for AdamW.
    Command: vitc train imagenet_resnet_50 --data DIR
    Cost: the paper's 3.4 min an epoch, 23 h. Here: not measured yet.
    Expected: the paper's top-1 error is 20.7 (400 epochs), 21.2 (200) and
    22.5 (100). This recipe: not measured yet.
    """
    return _sgd_only("resnet_50", optim)


def imagenet_resnet_101(optim: str | None = None) -> RunConfig:
    """ResNet-101 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD); the paper gives no rate for AdamW.
    Command: vitc train imagenet_resnet_101 --data DIR
    Cost: the paper's 5.5 min an epoch, 37 h. Here: not measured yet.
    Expected: the paper's top-1 error is 18.5 (400 epochs), 19.1 (200) and
    20.3 (100). This recipe: not measured yet.
    """
    return _sgd_only("resnet_101", optim)


def imagenet_resnet_152(optim: str | None = None) -> RunConfig:
    """ResNet-152 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD); the paper gives no rate for AdamW.
    Command: vitc train imagenet_resnet_152 --data DIR
    Cost: the paper's 7.7 min an epoch, 51 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.7 (400 epochs), 18.4 (200) and
    19.5 (100). This recipe: not measured yet.
    """
    return _sgd_only("resnet_152", optim)


def imagenet_resnet_200(optim: str | None = None) -> RunConfig:
    """ResNet-200 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD); the paper gives no rate for AdamW.
    Command: vitc train imagenet_resnet_200 --data DIR
    Cost: the paper's 10.7 min an epoch, 71 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.6 (400 epochs), 18.3 (200) and
    19.5 (100). This recipe: not measured yet.
    """
    return _sgd_only("resnet_200", optim, micro_batch=128)


def imagenet_regnety_1gf(optim: str | None = None) -> RunConfig:
    """RegNetY-1GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 and section 6 (SGD), Table 4 left (AdamW).
    Command: vitc train imagenet_regnety_1gf --data DIR [--optim adamw]
    Cost: the paper's 3.1 min an epoch, 21 h. Here: not measured yet.
    Expected: the paper's top-1 error is 21.5 (400 epochs), 22.2 (200) and
    23.2 (100). This recipe: not measured yet.
    """
    return _regnety("regnety_1gf", optim)


def imagenet_regnety_4gf(optim: str | None = None) -> RunConfig:
    """RegNetY-4GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 and section 6 (SGD), Table 4 left (AdamW).
    Command: vitc train imagenet_regnety_4gf --data DIR [--optim adamw]
    Cost: the paper's 7.6 min an epoch, 51 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.9 (400 epochs), 18.3 (200) and
    19.4 (100). This recipe: not measured yet.
    """
    return _regnety("regnety_4gf", optim)


def imagenet_regnety_16gf(optim: str | None = None) -> RunConfig:
    """RegNetY-16GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 and section 6 (SGD), Table 4 left (AdamW).
    Command: vitc train imagenet_regnety_16gf --data DIR [--optim adamw]
    Cost: the paper's 17.9 min an epoch, 119 h. Here: not measured yet.
    Expected: the paper's top-1 error is 16.3 (400 epochs), 16.4 (200) and
    17.1 (100). This recipe: not measured yet.
    """
    return _regnety("regnety_16gf", optim, micro_batch=128)


def imagenet_regnety_32gf(optim: str | None = None) -> RunConfig:
    """RegNetY-32GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 and section 6 (SGD), Table 4 left (AdamW: given for every RegNetY,
    though the paper runs it up to 16GF).
    Command: vitc train imagenet_regnety_32gf --data DIR [--optim adamw]
    Cost: the paper's 35.1 min an epoch, 234 h. Here: not measured yet.
    Expected: the paper's top-1 error is 15.9 (400 epochs), 15.9 (200) and
    16.2 (100). This recipe: not measured yet.
    """
    return _regnety("regnety_32gf", optim, micro_batch=64)


def imagenet_effnet_b2(optim: str | None = None) -> RunConfig:
    """EfficientNet-B2 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD); the paper gives no rate for AdamW.
    Command: vitc train imagenet_effnet_b2 --data DIR
    Cost: the paper's 5.9 min an epoch, 39 h. Here: not measured yet.
    Expected: the paper's top-1 error is 19.9 (400 epochs), 20.5 (200) and
    21.4 (100). This recipe: not measured yet.
    """
    return _sgd_only("effnet_b2", optim)


def imagenet_effnet_b4(optim: str | None = None) -> RunConfig:
    """EfficientNet-B4 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD). It trained with a batch below 2048, for memory, and
    the rate scaled linearly, but states no size; 512, what Table 2 timed, is our choice. The
    paper gives no rate for AdamW.
    Command: vitc train imagenet_effnet_b4 --data DIR
    Cost: the paper's 19.4 min an epoch, 129 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.5 (400 epochs), 17.8 (200) and
    18.5 (100). This recipe: not measured yet.
    """
    return _sgd_only("effnet_b4", optim, batch=512, micro_batch=64)


def imagenet_effnet_b5(optim: str | None = None) -> RunConfig:
    """EfficientNet-B5 on ImageNet-1k for 400 epochs; SGD only.

    Source: paper Table 2 and section 6 (SGD). It trained with a batch below 2048, for memory, and
    the rate scaled linearly, but states no size; 256, what Table 2 timed, is our choice. The
    paper gives no rate for AdamW.
    Command: vitc train imagenet_effnet_b5 --data DIR
    Cost: the paper's 41.7 min an epoch, 278 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.0 (400 epochs), 17.0 (200) and
    17.3 (100). This recipe: not measured yet.
    """
    return _sgd_only("effnet_b5", optim, batch=256, micro_batch=32)


def _sgd_only(
    model: str, optim: str | None, batch: int = 2048, micro_batch: int | None = None
) -> RunConfig:
    return imagenet(model, optim, {"sgd": sgd(2.54, 2.4e-5)}, batch, micro_batch)


def _regnety(model: str, optim: str | None, micro_batch: int | None = None) -> RunConfig:
    settings = {"sgd": sgd(2.54, 2.4e-5), "adamw": adamw(3.8e-3, 0.1)}
    return imagenet(model, optim, settings, micro_batch=micro_batch)
