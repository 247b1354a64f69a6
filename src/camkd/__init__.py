"""camkd: distill an image classifier into a tiny one that reproduces its class activation maps.

Public names and packages are imported on first access, so that ``camkd --help`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camkd.cams import predict
    from camkd.models import build
    from camkd.runs.loading import load
    from camkd.types import InputError, Prediction

__version__ = "0.1.0"

__all__ = ["InputError", "Prediction", "__version__", "build", "load", "predict"]

_MODULE_OF = {
    "InputError": "camkd.types",
    "Prediction": "camkd.types",
    "build": "camkd.models",
    "load": "camkd.runs.loading",
    "predict": "camkd.cams",
}

_PACKAGES = (
    "cams",
    "data",
    "distill",
    "evaluate",
    "experiments",
    "explain",
    "export",
    "models",
    "report",
    "runs",
    "train",
)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    if name in _PACKAGES:
        return import_module(f"camkd.{name}")
    raise AttributeError(f"module 'camkd' has no attribute {name!r}")
