"""Vision Transformers that optimise as easily as CNNs, and a measure of how easy any model is.

The public names. Importing this loads no torch: each name is imported from its module when it is
first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitc import errors, study
    from vitc.config import RunConfig
    from vitc.deploy.against import ModelComparison, compare
    from vitc.deploy.evaluation import Evaluation, evaluate
    from vitc.deploy.export.compare import ExportReport
    from vitc.deploy.export.export import export
    from vitc.deploy.front_door import train
    from vitc.deploy.plan import plan
    from vitc.deploy.predict import Predictions, Predictor
    from vitc.deploy.push import push_to_hub
    from vitc.deploy.save import save_pretrained
    from vitc.deploy.saved import from_pretrained
    from vitc.models.complexity import Complexity, complexity
    from vitc.models.zoo import create_model, list_models
    from vitc.resolve import load_config
    from vitc.training.loop import RunResult
    from vitc.weights.fit import LoadReport, load_weights

__version__ = "0.1.0"

_MODULES = {
    "Complexity": "vitc.models.complexity",
    "Evaluation": "vitc.deploy.evaluation",
    "ExportReport": "vitc.deploy.export.compare",
    "LoadReport": "vitc.weights.fit",
    "ModelComparison": "vitc.deploy.against",
    "Predictions": "vitc.deploy.predict",
    "Predictor": "vitc.deploy.predict",
    "RunConfig": "vitc.config",
    "RunResult": "vitc.training.loop",
    "compare": "vitc.deploy.against",
    "complexity": "vitc.models.complexity",
    "create_model": "vitc.models.zoo",
    "errors": "",
    "evaluate": "vitc.deploy.evaluation",
    "export": "vitc.deploy.export.export",
    "from_pretrained": "vitc.deploy.saved",
    "list_models": "vitc.models.zoo",
    "load_config": "vitc.resolve",
    "load_weights": "vitc.weights.fit",
    "plan": "vitc.deploy.plan",
    "push_to_hub": "vitc.deploy.push",
    "save_pretrained": "vitc.deploy.save",
    "study": "",
    "train": "vitc.deploy.front_door",
}
__all__ = [
    "Complexity",
    "Evaluation",
    "ExportReport",
    "LoadReport",
    "ModelComparison",
    "Predictions",
    "Predictor",
    "RunConfig",
    "RunResult",
    "compare",
    "complexity",
    "create_model",
    "errors",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load_config",
    "load_weights",
    "plan",
    "push_to_hub",
    "save_pretrained",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    value = getattr(import_module(module), name) if module else import_module(f"vitc.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
