"""Where to compute, and in which number format."""

from __future__ import annotations

import torch

from camkd.types import InputError


def pick_device(name: str) -> str:
    """Resolve ``auto`` to the best device there is. Raises ``InputError`` for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" makes tensors too, but they hold no numbers
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: take auto, cpu, or one this machine has.") from error
    return name


def pick_precision(name: str, device: torch.device) -> str:
    """Resolve ``auto`` to bf16 where the processor computes in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
