"""What the paper's ImageNet recipes share: the authors' schedule, average, augmentation, form.

Sources: see `paper`. Rates are for batch 2048.
"""

from __future__ import annotations

from vitc.config import RunConfig
from vitc.data.config import AugmentConfig, DataConfig
from vitc.models.config import CNNConfig
from vitc.models.zoo import model_config
from vitc.optim.config import (
    AdamWConfig,
    EmaConfig,
    OptimConfig,
    ScheduleConfig,
    SGDConfig,
)
from vitc.recipes.choose import choose_optim
from vitc.training.config import TrainConfig

AUTHORS_SCHEDULE = ScheduleConfig(warmup_start=0.1, floor=0.005, per="epoch")  # 5 epochs of 400
AUTHORS_EMA = EmaConfig(kind="pycls")  # alpha 1e-5 every 32 steps
PAPER_AUGMENT = AugmentConfig(
    crop="random_resized",
    policy="v0",
    lighting=0.1,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    label_smoothing=0.1,
)
PRECISE_BN = 8192  # images, before every evaluation


def adamw(lr: float, weight_decay: float) -> OptimConfig:
    """AdamW as the authors run it, per batch 2048."""
    return AdamWConfig(
        lr=lr,
        weight_decay=weight_decay,
        lr_per_batch=2048,
        schedule=AUTHORS_SCHEDULE,
        ema=AUTHORS_EMA,
    )


def sgd(lr: float, weight_decay: float) -> OptimConfig:
    """SGD as the authors run it, per batch 2048."""
    return SGDConfig(
        lr=lr,
        weight_decay=weight_decay,
        lr_per_batch=2048,
        schedule=AUTHORS_SCHEDULE,
        ema=AUTHORS_EMA,
    )


def imagenet(
    model: str,
    optim: str | None,
    settings: dict[str, OptimConfig],
    batch: int = 2048,
    micro_batch: int | None = None,
    *,
    name: str = "",
    epochs: int = 400,
) -> RunConfig:
    """The recipe imagenet_<model>, or `name`, with the model's own size of images.

    Evaluation resizes the shorter side to the paper's test size, 256 for ViTs, and cuts the
    model's size from the middle.
    """
    name = name or f"imagenet_{model}"
    config = model_config(model)
    test_size = config.test_size if isinstance(config, CNNConfig) else 256
    assert test_size is not None, f"{model} is not of the paper"
    return RunConfig(
        name=name,
        model=config,
        data=DataConfig(
            source="folder", eval_crop=config.size[0] / test_size, augment=PAPER_AUGMENT
        ),
        optim=choose_optim(name, optim, settings),
        train=TrainConfig(
            epochs=epochs,
            batch=batch,
            micro_batch=micro_batch,
            precision="bf16",
            precise_bn_images=PRECISE_BN,
        ),
    )
