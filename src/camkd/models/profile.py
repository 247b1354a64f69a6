"""What a network costs, and how fine its map is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camkd.models.modes import evaluating


class Profile(NamedTuple):
    """Parameters, multiply-accumulates of one picture (convolutions and linear layers), and the map's cells."""

    params: int
    macs: int
    grid: tuple[int, int]


def _macs(module: nn.Module, output: Tensor) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return output[0].numel() * weight[0].numel()


def profile(model: nn.Module, size: int) -> Profile:
    """Count the cost of ``model`` on one picture of ``size`` x ``size`` pixels.

    A network on the ``meta`` device is counted without computing anything. Layers used several times are counted as
    often as they run. Modes are left as they were.
    """
    total, grid = 0, (1, 1)

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total, grid
        total += _macs(module, output)
        if output.ndim == 4:
            grid = (output.shape[2], output.shape[3])

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    parameter = next(model.parameters())
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return Profile(sum(p.numel() for p in model.parameters()), total, grid)
