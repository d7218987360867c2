"""Models: a stem makes tokens, a transformer reads them; names for both, and what they cost.

Free of torch until a name that needs it is asked for. The function that counts a model's cost is
`vitc.complexity`; here `complexity` is the module it lives in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitc.models.config import (
    CNNConfig,
    ConvStemConfig,
    PatchifyStemConfig,
    StemConfig,
    ViTConfig,
)
from vitc.models.zoo import MODELS, build_model, create_model, list_models, model_config

if TYPE_CHECKING:
    from vitc.models import complexity
    from vitc.models.cnn import CNN
    from vitc.models.complexity import Complexity
    from vitc.models.stem import ConvStem, PatchifyStem
    from vitc.models.vit import VisionTransformer

__all__ = [
    "CNN",
    "MODELS",
    "CNNConfig",
    "Complexity",
    "ConvStem",
    "ConvStemConfig",
    "PatchifyStem",
    "PatchifyStemConfig",
    "StemConfig",
    "ViTConfig",
    "VisionTransformer",
    "build_model",
    "complexity",
    "create_model",
    "list_models",
    "model_config",
]

_HOMES = {
    "CNN": "cnn",
    "Complexity": "complexity",
    "ConvStem": "stem",
    "PatchifyStem": "stem",
    "VisionTransformer": "vit",
}


def __getattr__(name: str) -> Any:
    if name == "complexity":
        return import_module("vitc.models.complexity")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"vitc.models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
