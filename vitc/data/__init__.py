"""Images: where they come from, which one when, and how they reach the device as uint8."""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> its module, imported when the name is first asked for: some need torch.
_PUBLIC = {
    "DataSet": "sources",
    "Split": "sources",
    "open_data": "sources",
    "crop_resize": "decode",
    "eval_image": "decode",
    "read_image": "decode",
    "to_channels": "decode",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
