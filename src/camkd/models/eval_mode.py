"""Borrowing a network without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` into evaluation mode; each gets its own mode back, also on an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def dilated_in_fp32(model: nn.Module) -> Iterator[None]:
    """Compute the dilated grouped convolutions of ``model`` in fp32, whatever autocast says.

    oneDNN's weight gradient of these is wrong on a CPU in bf16 with channels last: noise of the gradient's own size, or
    infinite (LOG.md). Nothing else in their networks is slower for it.
    """
    suspects = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.dilation) > 1
    ]
    for module in suspects:
        module.forward = _in_fp32(module.forward)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for module in suspects:
            del module.forward


def _in_fp32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def convolve(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return convolve
