"""camkd: compress an image classifier into a tiny one that looks where its teacher looks.

The public names; everything else is reached through its own module. They are loaded when first used, so that the
command line answers ``--help`` without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camkd.cams import predict
    from camkd.models import build
    from camkd.runs import load
    from camkd.types import InputError, Prediction

__version__ = "0.1.0"

__all__ = ["InputError", "Prediction", "__version__", "build", "load", "predict"]

_HOMES = {
    "InputError": "camkd.types",
    "Prediction": "camkd.types",
    "build": "camkd.models",
    "load": "camkd.runs",
    "predict": "camkd.cams",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'camkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
