"""Vision Transformers that optimise as easily as CNNs, and a measure of how easy any model is.

The public names. Importing this does nothing visible and loads no torch: each name is fetched from
its room when it is first asked for (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vitc import train as _train_room  # its __init__ is as lazy as this one

if TYPE_CHECKING:
    from vitc import config, data, deploy, errors, models, optim, recipes, study
    from vitc.config import RunConfig, load_config
    from vitc.deploy.hub import push_to_hub
    from vitc.deploy.predict import Predictions, Predictor
    from vitc.deploy.pretrained import from_pretrained, save_pretrained
    from vitc.models.complexity import Complexity, complexity
    from vitc.models.zoo import create_model, list_models
    from vitc.train.loop import RunResult, train
    from vitc.train.start import LoadReport, load_weights

__version__ = "0.1.0"

__all__ = [
    "Complexity",
    "LoadReport",
    "Predictions",
    "Predictor",
    "RunConfig",
    "RunResult",
    "complexity",
    "config",
    "create_model",
    "data",
    "deploy",
    "errors",
    "from_pretrained",
    "list_models",
    "load_config",
    "load_weights",
    "models",
    "optim",
    "push_to_hub",
    "recipes",
    "save_pretrained",
    "study",
    "train",
]

_HOMES = {
    "Complexity": "vitc.models.complexity",
    "LoadReport": "vitc.train.start",
    "Predictions": "vitc.deploy.predict",
    "Predictor": "vitc.deploy.predict",
    "RunConfig": "vitc.config",
    "RunResult": "vitc.train.loop",
    "complexity": "vitc.models.complexity",
    "create_model": "vitc.models.zoo",
    "from_pretrained": "vitc.deploy.pretrained",
    "list_models": "vitc.models.zoo",
    "load_config": "vitc.config",
    "load_weights": "vitc.train.start",
    "push_to_hub": "vitc.deploy.hub",
    "save_pretrained": "vitc.deploy.pretrained",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        value = import_module(f"vitc.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _TrainRoom(ModuleType):
    """`vitc.train` is the room of that name and, called, the function in it."""

    def __call__(self, config_or_recipe: Any, out: Any = None, **overrides: Any) -> Any:
        return self.train(config_or_recipe, out, **overrides)


_train_room.__class__ = _TrainRoom
