"""A run folder put to use: predictions, and what there is to show of models, recipes and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitc.deploy.predict import Predictions, Predictor

__all__ = ["Predictions", "Predictor"]


def __getattr__(name: str) -> Any:
    """Import what needs numpy only when it is asked for (PEP 562)."""
    if name in __all__:
        from vitc.deploy import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
