"""The programs camkd is compared with, imported where they can be (requirements-bench.txt)."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_library: torch.library.Library | None = None  # what it declares is gone when it is


@cache
def peer(name: str) -> Any:
    """Import the module ``name``; where that fails, say so in one line and return None."""
    try:
        _declare_torchvision_operators()
        return import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"{name} is left out, it cannot be imported: {reason[0]}", file=sys.stderr)
        return None


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch that its wheel was not built for.

    Its package index has wheels for the CUDA build of torch alone. Beside another its compiled library does not load,
    and the import then fails because two operators that nothing here calls are not declared.
    """
    global _library
    found = find_spec("torchvision")
    if _library is not None or found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
