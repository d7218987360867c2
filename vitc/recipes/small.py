"""Recipes for small images and a laptop. Learning rates are absolute: for the batch stated here.

A pair (ViT_P, ViT_C) shares every setting but the model, so that what differs between their
results is the stem. Settings were chosen on validation images only, and results are on those
unless stated otherwise.
"""

from __future__ import annotations

from vitc.config import RunConfig
from vitc.data.config import AugmentConfig, DataConfig
from vitc.models.zoo import model_config
from vitc.optim.config import OptimConfig
from vitc.optim.optimizers import AdamWConfig, MuonConfig, SGDConfig
from vitc.recipes.recipe import Recipe
from vitc.training.config import TrainConfig


def tuned(adamw: tuple[float, float], sgd: tuple[float, float]) -> dict[str, OptimConfig]:
    """Settings from (lr, weight decay) of each optimizer."""
    return {
        "adamw": AdamWConfig(lr=adamw[0], weight_decay=adamw[1]),
        "sgd": SGDConfig(lr=sgd[0], weight_decay=sgd[1]),
    }


DEBUG = Recipe(
    """Synthetic images and a tiny ViT_C: does everything work, in seconds?

Source: ours; ten classes of noisy stripes (512 images), learnable but not at a glance.
No flip, for a mirrored diagonal belongs to another class.
Command: vitc train debug
Cost: 4 s of training on one core of a 2026 Xeon.
Expected: validation top-1 80.9 (57.8-96.9) with AdamW, 95.3 (76.6-100) with SGD, EMA of the
last epoch; mean (range) of 5 seeds on 128 images; measured 2026-11-23 in fp32
(vitc study optimizer debug --lengths 6 --seeds 5).""",
    RunConfig(
        name="debug",
        model=model_config("vit_c_tiny"),
        data=DataConfig(
            source="synthetic",
            fit="pad",
            augment=AugmentConfig(crop="shift", flip=0.0, label_smoothing=0.1),
        ),
        train=TrainConfig(epochs=6, batch=16),
    ),
    tuned((1e-3, 0.05), (0.05, 1e-4)),
)


def _fashion(name: str, model: str, doc: str) -> Recipe:
    config = RunConfig(
        name=name,
        model=model_config(model, in_chans=1),
        data=DataConfig(
            source="fashion",
            fit="pad",
            augment=AugmentConfig(crop="shift", shift_pixels=1, label_smoothing=0.1),
        ),
        train=TrainConfig(epochs=30, batch=128, precision="auto"),
    )
    return Recipe(doc, config, tuned((2e-3, 0.1), (0.1, 1e-4)))


FASHION_VIT_C = _fashion(
    "fashion_vit_c",
    "vit_c_tiny",
    """ViT_C (tiny) on the Fashion-MNIST subset inside the package: no download.

Source: ours; 8,500 training images, 28x28 padded to 32x32.
Command: vitc train fashion_vit_c [--optim sgd]
Cost: 110 s on one core of a 2026 Xeon (2,350 images a second, fp32).
Expected: validation top-1 88.2 (87.3-88.8) with AdamW, 89.1 (88.5-89.8) with SGD, EMA of the
last epoch; mean (range) of 5 seeds on 1,500 images; measured 2026-11-23 in fp32
(docs/results/optimizer.md).""",
)
FASHION_VIT_P = _fashion(
    "fashion_vit_p",
    "vit_p_tiny",
    """ViT_P (tiny) on the Fashion-MNIST subset inside the package: no download.

Source: ours; the settings of fashion_vit_c.
Command: vitc train fashion_vit_p [--optim sgd]
Cost: 90 s on one core of a 2026 Xeon (2,850 images a second, fp32).
Expected: validation top-1 85.8 (84.7-86.3) with AdamW, 85.8 (85.1-86.5) with SGD, EMA of the
last epoch; mean (range) of 5 seeds on 1,500 images; measured 2026-11-23 in fp32
(docs/results/optimizer.md).""",
)


def _cifar10(name: str, model: str, doc: str) -> Recipe:
    config = RunConfig(
        name=name,
        model=model_config(model),
        data=DataConfig(
            source="cifar10",
            eval_crop=1.0,  # of a folder of 32x32 images, evaluation keeps every pixel
            val_fraction=0.1,
            augment=AugmentConfig(crop="shift", label_smoothing=0.1),
        ),
        train=TrainConfig(epochs=60, batch=128, precision="auto"),
    )
    return Recipe(doc, config, tuned((2e-3, 0.1), (0.1, 1e-4)))


CIFAR10_VIT_C = _cifar10(
    "cifar10_vit_c",
    "vit_c_tiny_patch4",
    """ViT_C (tiny, patch 4) on CIFAR-10, within an hour on a laptop.

Source: ours; DIR holds CIFAR-10's binary or Python files, or an image folder of it.
Command: vitc train cifar10_vit_c --data DIR
Cost: about 60 minutes on one core of a 2026 Xeon, by its rate of 740 images a second in fp32.
Expected: not measured yet. Runs of 3 short epochs: docs/results/cifar10_jpeg_q75.md.""",
)
CIFAR10_VIT_P = _cifar10(
    "cifar10_vit_p",
    "vit_p_tiny_patch4",
    """ViT_P (tiny, patch 4) on CIFAR-10, within an hour on a laptop.

Source: ours; the settings of cifar10_vit_c.
Command: vitc train cifar10_vit_p --data DIR
Cost: about that of cifar10_vit_c; not measured yet.
Expected: not measured yet. Runs of 3 short epochs: docs/results/cifar10_jpeg_q75.md.""",
)

FORMULA = Recipe(
    """A residual-stem ViT on fractals and contours: weights to start from, without a photo.

Source: ours, after FractalDB (arXiv 2103.13023) and RCDB (arXiv 2206.09132); 1,000 classes of 100
images of 64x64 pixels, made from a seed and seen at 32x32.
Command: vitc train formula (or vitc pretrain formula --model NAME)
Cost: 48 minutes on one core of a 2026 Xeon for 1.4 million images (490 a second of processor time).
Expected: 86.2 (84.6-87.6) % of its own 2,000 validation images; one run, measured 2026-11-29; what
it is worth as a start: docs/results/formula.md.""",
    RunConfig(
        name="formula",
        model=model_config("vit_r_tiny64", img_size=32),  # four times the images in its time
        data=DataConfig(
            source="formula",
            path="formula:classes=1000,images=100,side=64,seed=0",
            cache_side=64,
            augment=AugmentConfig(crop="random_resized", scale=(0.35, 1.0)),
        ),
        train=TrainConfig(epochs=15, batch=64, eval_every_epochs=5, precision="auto"),
    ),
    {"muon": MuonConfig(lr=1e-3, weight_decay=0.1), **tuned((1e-3, 0.1), (0.1, 1e-4))},
)

SMALL = {
    r.config.name: r
    for r in (DEBUG, FASHION_VIT_C, FASHION_VIT_P, CIFAR10_VIT_C, CIFAR10_VIT_P, FORMULA)
}
