"""How does timm build the models of the zoo? By their names, once this module is imported.

    import vitc.models.timm_registry
    model = timm.create_model("vit_c_4gf", num_classes=10)

Then timm's own trainer, feature extractors (`features_only=True`) and optimizer factory work with
them. Names that timm has itself (resnet50) stay timm's. There are no pretrained weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from vitc.errors import ConfigError
from vitc.machine import install_line
from vitc.models.config import CNNConfig, ModelConfig, ViTConfig
from vitc.models.stem_config import PatchifyStemConfig
from vitc.models.timm import import_peer
from vitc.models.zoo import MODELS, create_model

try:
    timm = import_peer("timm")
    builder, constants = import_peer("timm.models"), import_peer("timm.data")
except ImportError as e:
    raise ImportError(
        f"vitc.models.timm_registry needs the timm library. Install it with: {install_line('timm')}"
    ) from e

default_cfgs: dict[str, dict[str, Any]] = {}  # timm reads it when a model is registered
__all__: list[str] = []  # timm adds the names


def _build(name: str, drop_rate: float = 0.0, **settings: Any) -> nn.Module:
    """A model as timm asks for it. Raises ConfigError: dropout before the head, which no model of
    the zoo has, or a setting or a pooling that it does not know."""
    if drop_rate:
        raise ConfigError(
            f"drop_rate {drop_rate} has no effect: the models of the zoo have no dropout.",
            "Use drop_path_rate.",
        )
    pool = settings.pop("global_pool", None)
    classes = settings.pop("num_classes", 1000)
    if pool and isinstance(MODELS[name], ViTConfig):
        settings["global_pool"] = pool
    model = create_model(name, num_classes=classes, **settings)
    if pool not in (None, model.global_pool):
        model.reset_classifier(classes, pool)  # type: ignore[operator]
    return model


def _about(config: ModelConfig) -> dict[str, Any]:
    """What timm knows of a model: its input, and where its first and last layers are."""
    height, width = config.size
    about = {
        "url": "",
        "num_classes": 1000,
        "input_size": (config.in_chans, height, width),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": constants.IMAGENET_DEFAULT_MEAN,
        "std": constants.IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv.conv",
        "classifier": "head",
    }
    if isinstance(config, ViTConfig):
        patchify = isinstance(config.stem, PatchifyStemConfig)
        about["first_conv"] = "stem.proj" if patchify else "stem.layers.0.conv"
        about["fixed_input_size"] = True
    if isinstance(config, CNNConfig):
        about["pool_size"] = tuple(-(-side // config.reduction) for side in config.size)
    return about


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    config = MODELS[name]
    layers: int | tuple[int, ...] = min(4, config.depth) if isinstance(config, ViTConfig) else 4
    if isinstance(config, CNNConfig):  # the last stage of each resolution; 0 is the stem
        last = [i for i, stride in enumerate(config.strides) if stride > 1 and i]
        layers = (*last, len(config.strides))

    def build(pretrained: bool = False, **settings: Any) -> nn.Module:
        model: nn.Module = builder.build_model_with_cfg(
            partial(_build, name),
            name,
            pretrained,
            feature_cfg={"out_indices": layers, "feature_cls": "getter"},
            **settings,
        )
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name} of vitc's zoo, freshly initialised."
    return build


for _name, _config in MODELS.items():
    if not timm.is_model(_name):
        default_cfgs[_name] = _about(_config)
        globals()[_name] = builder.register_model(_entrypoint(_name))
