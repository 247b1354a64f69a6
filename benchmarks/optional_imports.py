"""Import of other libraries that camkd is compared with (requirements-bench.txt)."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_library: torch.library.Library | None = None  # keeps its operators declared


@cache
def import_optional(name: str) -> Any:
    """Import a module that may not be installed.

    Args:
        name: Name of the module.

    Returns:
        The module, or None after a line on stderr if it cannot be imported.
    """
    try:
        _declare_torchvision_operators()
        return import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"{name} is skipped, as it cannot be imported: {lines[0]}", file=sys.stderr)
        return None


def _declare_torchvision_operators() -> None:
    """Declare two operators, so that torchvision can be imported with any build of torch.

    PyPI has wheels of torchvision for the CUDA build of torch only. With another build of torch, torchvision's compiled
    library does not load, and the import fails because two operators are not declared. No benchmark calls them.
    """
    global _library
    spec = find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
