"""The paper's ImageNet-1k recipes.

Sources: arXiv 2106.14881 section 5.4 (what is common), section 6 and Table 2 (AdamW's settings),
Table 4 left (SGD's, tuned at 50 epochs); the authors' configs on the branch `vitconfigs` of
facebookresearch/pycls (400 epochs, mixed precision, 8 GPUs of 256 images, evaluation cuts 224 of
256) and pycls itself (warm-up from 0.1 of the rate, floor of 0.005, one rate an epoch, its EMA,
AutoAugment by the EfficientNet code's policy "v0", AlexNet's PCA lighting of 0.1, and Precise-BN:
BatchNorm statistics taken anew from 8,192 images before every evaluation).

What still differs: bf16 where the authors ran fp16 with loss scaling, and pixels resized by torch
where theirs were by OpenCV.

DIR is a folder with `train` and `val`, one sub-folder a class in each. The rates are for batch
2048 and scale with `--train.batch`; `--train.micro_batch` cuts the memory, but for ViT_C it
changes what BatchNorm sees. Times an epoch are the paper's, on 8 V100 of 32 GB.
"""

from __future__ import annotations

from vitc.config import RunConfig
from vitc.recipes.imagenet import adamw, imagenet, sgd


def imagenet_vit_p_1gf(optim: str | None = None) -> RunConfig:
    """ViT_P-1GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 (AdamW), Table 4 left (SGD).
    Command: vitc train imagenet_vit_p_1gf --data DIR
    Cost: the paper's 2.6 min an epoch, 17 h. Here: not measured yet.
    Expected: the paper's top-1 error is 27.7 (400 epochs), 29.7 (200) and
    33.2 (100). This recipe: not measured yet.
    """
    return imagenet("vit_p_1gf", optim, {"adamw": adamw(1e-3, 0.24), "sgd": sgd(1.9, 1.3e-5)})


def imagenet_vit_p_4gf(optim: str | None = None) -> RunConfig:
    """ViT_P-4GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 (AdamW), Table 4 left (SGD).
    Command: vitc train imagenet_vit_p_4gf --data DIR
    Cost: the paper's 3.8 min an epoch, 25 h. Here: not measured yet.
    Expected: the paper's top-1 error is 19.6 (400 epochs), 20.8 (200) and
    23.3 (100). This recipe: not measured yet.
    """
    return imagenet("vit_p_4gf", optim, {"adamw": adamw(1e-3, 0.24), "sgd": sgd(1.9, 1.3e-5)})


def imagenet_vit_p_18gf(optim: str | None = None) -> RunConfig:
    """ViT_P-18GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 (AdamW), Table 4 left (SGD; the paper saw such runs diverge).
    Command: vitc train imagenet_vit_p_18gf --data DIR
    Cost: the paper's 11.5 min an epoch, 77 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.9 (400 epochs), 18.4 (200) and
    19.9 (100). This recipe: not measured yet.
    """
    return imagenet("vit_p_18gf", optim, {"adamw": adamw(1e-3, 0.24), "sgd": sgd(1.1, 1.2e-5)})


def imagenet_vit_p_36gf(optim: str | None = None) -> RunConfig:
    """ViT_P-36GF on ImageNet-1k for 400 epochs; AdamW only.

    Source: paper Table 2 and section 6 (AdamW); the paper gives no rate for SGD.
    Command: vitc train imagenet_vit_p_36gf --data DIR
    Cost: the paper's 18.8 min an epoch, 125 h. Here: not measured yet.
    Expected: the paper's top-1 error is 18.2 (400 epochs), 18.8 (200) and
    19.9 (100). This recipe: not measured yet.
    """
    return imagenet("vit_p_36gf", optim, {"adamw": adamw(6e-4, 0.28)})


def imagenet_vit_c_1gf(optim: str | None = None) -> RunConfig:
    """ViT_C-1GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 (AdamW), Table 4 left (SGD).
    Command: vitc train imagenet_vit_c_1gf --data DIR
    Cost: the paper's 2.7 min an epoch, 18 h. Here: not measured yet.
    Expected: the paper's top-1 error is 24.7 (400 epochs), 26.1 (200) and
    28.6 (100). This recipe: not measured yet.
    """
    return imagenet("vit_c_1gf", optim, {"adamw": adamw(1e-3, 0.24), "sgd": sgd(1.9, 1.3e-5)})


def imagenet_vit_c_4gf(optim: str | None = None) -> RunConfig:
    """ViT_C-4GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 (AdamW), Table 4 left (SGD).
    Command: vitc train imagenet_vit_c_4gf --data DIR
    Cost: the paper's 3.9 min an epoch, 26 h. Here: not measured yet.
    Expected: the paper's top-1 error is 18.6 (400 epochs), 19.2 (200) and
    20.9 (100). This recipe: not measured yet.
    """
    return imagenet("vit_c_4gf", optim, {"adamw": adamw(1e-3, 0.24), "sgd": sgd(1.3, 2.2e-5)})


def imagenet_vit_c_18gf(optim: str | None = None) -> RunConfig:
    """ViT_C-18GF on ImageNet-1k for 400 epochs.

    Source: paper Table 2 (AdamW), Table 4 left (SGD).
    Command: vitc train imagenet_vit_c_18gf --data DIR
    Cost: the paper's 11.4 min an epoch, 76 h. Here: not measured yet.
    Expected: the paper's top-1 error is 17.0 (400 epochs), 17.5 (200) and
    18.4 (100). This recipe: not measured yet.
    """
    return imagenet("vit_c_18gf", optim, {"adamw": adamw(1e-3, 0.24), "sgd": sgd(1.1, 2.7e-5)})


def imagenet_vit_c_36gf(optim: str | None = None) -> RunConfig:
    """ViT_C-36GF on ImageNet-1k for 400 epochs; AdamW only.

    Source: paper Table 2 and section 6 (AdamW); the paper gives no rate for SGD.
    Command: vitc train imagenet_vit_c_36gf --data DIR
    Cost: the paper's 18.6 min an epoch, 124 h. Here: not measured yet.
    Expected: the paper's top-1 error is 16.8 (400 epochs), 17.6 (200) and
    18.3 (100). This recipe: not measured yet.
    """
    return imagenet("vit_c_36gf", optim, {"adamw": adamw(6e-4, 0.28)})
