"""Context managers that change a model temporarily: evaluation mode, and fp32 for dilated convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of each module on exit, also after an exception.

    Args:
        model: The model.

    Example:
        >>> model = nn.Sequential(nn.Dropout()).train()
        >>> with eval_mode(model):
        ...     model[0].training
        False
        >>> model[0].training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def fp32_dilated_convs(model: nn.Module) -> Iterator[None]:
    """Compute the dilated grouped convolutions of a model in fp32, also under autocast.

    oneDNN computes a wrong weight gradient of such a convolution on a CPU in bf16 with channels last: the error is as
    large as the gradient, or infinite (LOG.md). All other layers still run in bf16 under autocast.

    Args:
        model: The model.
    """
    convolutions = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.dilation) > 1
    ]
    for convolution in convolutions:
        convolution.forward = _run_in_fp32(convolution.forward)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution.forward


def _run_in_fp32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward_fp32(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return forward_fp32
